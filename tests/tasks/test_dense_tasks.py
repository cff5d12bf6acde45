"""Segmentation and depth: losses and metrics against torch's, torchmetrics' and scikit-learn's on whole maps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.targets.target_set import DEPTH, MASK, TargetSet
from losa_cache.tasks import get_task
from losa_cache.tasks.measures import maps
from losa_cache.train.config import TrainConfig

CLASSES, SIZE = ["sky", "road", "pole"], (9, 6)


@pytest.fixture(params=[1, 2**19])
def few(request, monkeypatch):
    """Maps one at a time, or all."""
    monkeypatch.setattr(maps, "CPU_VALUES", request.param)


def masks(count=5):
    drawn = np.random.default_rng(0).integers(0, 3, (count, *SIZE)).astype(np.uint8)
    drawn[np.random.default_rng(1).random(drawn.shape) < 0.2] = 255
    drawn[-1] = 255  # an image of which nothing is known
    return TargetSet("masks", MASK, CLASSES, drawn)


def depths(count=5):
    drawn = np.random.default_rng(0).uniform(0.5, 20, (count, *SIZE)).astype(np.float32)
    drawn[np.random.default_rng(1).random(drawn.shape) < 0.2] = np.nan
    return TargetSet("depth", DEPTH, ["depth"], drawn)


def outputs(classes, count=5):
    torch.manual_seed(0)
    return torch.randn(2, count, classes, 3, 2, dtype=torch.float64, requires_grad=True)


def large(low):
    return F.interpolate(low.flatten(0, 1), size=SIZE, mode="bilinear", align_corners=False).unflatten(0, low.shape[:2])


def figures(task, predictions, targets):
    means = {metric.terms: metric.terms(predictions, targets).mean(1).tolist() for metric in task.metrics}
    return [{m.name: m.value(means[m.terms][trial]) for m in task.metrics} for trial in range(len(predictions))]


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_loss_of_masks_is_torchs_over_the_pixels_of_a_class(few, weights):
    found, target = outputs(3), masks()
    config = TrainConfig(task="segmentation", class_weights=weights)
    task = get_task("segmentation").fitted(target, np.arange(5), config, {})
    counts = np.bincount(target.values[target.values != 255])
    weight = torch.tensor(counts.sum() / (3 * counts) if weights else [1.0] * 3, dtype=torch.float64)
    expected = []
    for logits in large(found):
        each = F.cross_entropy(
            logits, torch.from_numpy(target.values).long(), weight, ignore_index=255, reduction="none"
        )
        known = (target.values != 255).sum((1, 2)).clip(1)
        expected.append(each.sum((1, 2)) / torch.from_numpy(known))
    ours, theirs = task.losses(found, torch.from_numpy(target.values)), torch.stack(expected)
    torch.testing.assert_close(ours, theirs)
    scale = torch.rand(2, 5, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad((own * scale).sum(), found)[0] for own in (ours, theirs)))


def test_metrics_of_masks_are_those_of_scikit_learn(few):
    found, target = outputs(3).detach(), masks()
    target.values[target.values == 2] = 255  # a class that is predicted and never there
    task = get_task("segmentation").restored({"size": list(SIZE)})
    decided = task.decided(found)
    known = target.values != 255
    for trial, own in enumerate(figures(task, found, torch.from_numpy(target.values))):
        predicted = large(found)[trial].argmax(1).numpy()
        np.testing.assert_array_equal(decided[trial], predicted)
        shares = jaccard_score(target.values[known], predicted[known], average=None, labels=[0, 1, 2])
        assert own["miou"] == pytest.approx(100 * shares.mean())
        assert own["pixel_accuracy"] == pytest.approx(100 * (target.values == predicted)[known].mean())
        assert own["loss"] == pytest.approx(float(task.losses(found, torch.from_numpy(target.values))[trial].mean()))
    told = task.answers(found[0], CLASSES, 2)[1]
    shares = np.bincount(decided[0, 1].numpy().ravel(), minlength=3) / decided[0, 1].numel()
    assert [own["class"] for own in told] == [CLASSES[at] for at in np.argsort(-shares)[:2]]
    assert told[0]["share"] == pytest.approx(shares.max())


def test_depth_learns_standardised_logarithms_and_its_adapter_gives_them_in_the_unit_of_the_targets(few):
    found, target = outputs(1), depths()
    task = get_task("depth").fitted(target, np.array([0, 2, 3]), TrainConfig(task="depth"), {})
    logs = np.log(target.values[[0, 2, 3]].astype(np.float64))
    mean, deviation = np.nanmean(logs), np.nanstd(logs)
    predicted = large(found)[:, :, 0] * deviation + mean
    truth = torch.from_numpy(target.values)
    expected = (predicted - truth.double().log()).abs().nanmean((2, 3))
    ours = task.losses(found, truth)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(own.sum(), found)[0] for own in (ours, expected)), rtol=1e-6, atol=1e-6
    )
    layer = torch.nn.Linear(4, 1).double()
    tokens = torch.randn(7, 4).double()
    before = task.predictions(layer(tokens))
    task.fold(layer)
    torch.testing.assert_close(get_task("depth").restored(task.constants).predictions(layer(tokens)), before)


def test_metrics_of_depth_are_means_over_measured_pixels(few):
    found, target = outputs(1).detach(), depths()
    task = get_task("depth").restored({"mean": 0.0, "deviation": 1.0, "size": list(SIZE)})
    known = ~np.isnan(target.values)
    truth = target.values[known].astype(np.float64)
    for trial, own in enumerate(figures(task, found, torch.from_numpy(target.values))):
        predicted = large(found)[trial, :, 0].exp().numpy()
        np.testing.assert_allclose(task.decided(found)[trial], predicted)
        predicted = predicted[known]
        assert own["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - truth) ** 2)))
        assert own["absrel"] == pytest.approx(100 * np.mean(np.abs(predicted - truth) / truth))
        assert own["delta1"] == pytest.approx(100 * np.mean(np.maximum(predicted / truth, truth / predicted) < 1.25))


def test_targets_from_which_nothing_can_be_learned_are_refused():
    config, train = TrainConfig(task="segmentation"), np.array([4])
    with pytest.raises(lc.UserError, match="no pixel of the 1 training masks has a class"):
        get_task("segmentation").fitted(masks(), train, config, {})
    with pytest.raises(lc.UserError, match="class 'pole' has no training samples"):
        mask = replace(masks(), values=np.arange(4, dtype=np.uint8).reshape(1, 2, 2) % 2)
        get_task("segmentation").fitted(mask, np.array([0]), replace(config, class_weights="balanced"), {})
    with pytest.raises(lc.UserError, match="every pixel of the 1 training maps has the same depth"):
        flat = replace(depths(), values=np.full((5, *SIZE), 2.5, np.float32))
        get_task("depth").fitted(flat, train, TrainConfig(task="depth"), {})
    with pytest.raises(lc.UserError, match="are of class 'sky', so they tell no settings apart; add some"):
        get_task("segmentation").require_choosable(np.zeros((6, 2, 2), np.uint8), CLASSES, "add some")
    for task, constants in (("segmentation", {}), ("segmentation", {"size": [3, -1]}), ("depth", {"size": [3, 3]})):
        with pytest.raises(ValueError, match="the constants"):
            get_task(task).restored(constants)
