"""Losses and predictions of the tasks against plain re-derivations in float64."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

import losa_cache as lc
from losa_cache.targets.class_weights import class_weights
from losa_cache.targets.target_set import CLASS, MULTILABEL, NUMBERS, TargetSet
from losa_cache.tasks import get_task
from losa_cache.train.config import TrainConfig

CLASSIFICATION, ORDINAL, MANY, REGRESSION = map(get_task, ("classification", "ordinal", "multilabel", "regression"))
NAMES = ["a", "b", "c", "d"]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def fitted(task, values, train, names=NAMES, weights=None, **options):
    targets = TargetSet("t", get_task(task).kind, names, np.asarray(values))
    return get_task(task).fitted(targets, np.asarray(train), TrainConfig(task=task, **options), weights or {})


def test_balanced_weights_are_those_of_scikit_learn_and_given_ones_average_to_one():
    labels = np.array([0, 0, 0, 1, 2, 2, 3])
    counts = np.bincount(labels)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(class_weights("balanced", counts, NAMES, {}), expected)
    given = class_weights("w.csv", counts, NAMES, {"a": 1, "b": 5, "c": 0, "d": 2})
    np.testing.assert_allclose(given, np.array([1, 5, 0, 2]) / np.array([1, 5, 0, 2])[labels].mean())
    with pytest.raises(lc.UserError, match="class 'd' has no training samples"):
        class_weights("balanced", np.array([1, 1, 1, 0]), NAMES, {})
    with pytest.raises(lc.UserError, match=r"'w.csv' gives no weight for the class 'd'"):
        class_weights("w.csv", counts, NAMES, {"a": 1, "b": 1, "c": 1})
    with pytest.raises(lc.UserError, match=r"'w.csv' weighs the class 'x', which the targets do not have"):
        class_weights("w.csv", counts, NAMES, dict.fromkeys("abcdx", 1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_and_focal_losses_of_classes(smoothing):
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    outputs, weights = drawn(2, 7, 4), compute_class_weight("balanced", classes=np.arange(4), y=labels.numpy())
    options = {"label_smoothing": torch.full((2, 1), smoothing, dtype=torch.float64)}
    plain = CLASSIFICATION.losses(outputs, labels, **options)
    likely = outputs.softmax(-1)[:, torch.arange(7), labels]
    for loss, factor in (("cross-entropy", 1.0), ("focal", (1 - likely) ** 2)):
        task = fitted("classification", labels, range(7), class_weights="balanced", loss=loss)
        expected = plain * factor * torch.from_numpy(weights)[labels]
        torch.testing.assert_close(task.losses(outputs, labels, **options), expected)
        torch.testing.assert_close(task.loss(outputs[0], labels, label_smoothing=smoothing), expected[0].mean())
        mixed = torch.nn.functional.one_hot(labels, 4).double()
        torch.testing.assert_close(task.loss(outputs[0], mixed, label_smoothing=smoothing), expected[0].mean())


def test_ordinal_outputs_are_probabilities_of_the_classes_and_their_loss_is_the_likelihood():
    outputs, labels = drawn(2, 6, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    reached = outputs.sigmoid().cumprod(-1)  # that the class is above the first, the second, the third
    above = torch.cat([torch.ones(2, 6, 1), reached, torch.zeros(2, 6, 1)], -1)
    expected = above[..., :-1] - above[..., 1:]
    predictions = ORDINAL.predictions(outputs)
    torch.testing.assert_close(predictions.exp(), expected)
    torch.testing.assert_close(ORDINAL.losses(outputs, labels), -expected[:, torch.arange(6), labels].log())
    cost = (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    assert torch.equal(ORDINAL.decided(predictions), (expected @ cost).argmin(-1))
    assert ORDINAL.outputs(NAMES) == 3
    medians = (expected @ cost).argmin(-1)
    assert torch.equal(ORDINAL.likeliest(predictions, 4)[..., 0], medians)
    others = ORDINAL.likeliest(predictions, 4)[..., 1:]
    assert bool((expected.gather(-1, others).diff(dim=-1) <= 0).all())
    (top1,) = [metric for metric in ORDINAL.metrics if metric.name == "top1"]
    assert torch.equal(top1.terms(predictions, labels)[..., 0], medians == labels)
    (mae,) = [metric for metric in ORDINAL.metrics if metric.name == "mae"]
    answers = (expected[0] @ cost).argmin(-1)
    assert float(mae.terms(predictions, labels)[0].mean()) == pytest.approx(
        float((answers - labels).abs().double().mean())
    )


def test_losses_of_several_labels_leave_out_what_is_unknown():
    outputs, targets = drawn(2, 5, 3), torch.tensor([[1, 0, -1], [0, 0, 1], [-1, -1, -1], [1, 1, 0], [0, -1, 1]])
    chance = outputs.sigmoid()
    for loss in MANY.training_losses:
        task = fitted("multilabel", targets.numpy().astype(np.int8), range(5), NAMES[:3], loss=loss)
        found = task.losses(outputs, targets.to(torch.int8))
        for trial in range(2):
            for sample in range(5):
                terms = []
                for label in range(3):
                    p, y = float(chance[trial, sample, label]), int(targets[sample, label])
                    shifted = max(p - 0.05, 0) if loss == "asymmetric" else p
                    factor = shifted**4 if loss == "asymmetric" else 1
                    if y >= 0:
                        terms.append(-math.log(p) if y else -factor * math.log(1 - shifted))
                expected = sum(terms) / len(terms) if terms else 0
                assert float(found[trial, sample]) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    balanced = fitted("multilabel", targets.numpy().astype(np.int8), range(5), NAMES[:3], class_weights="balanced")
    whole = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8)
    absent, present = (targets == 0).sum(0), (targets == 1).sum(0)
    reference = nn.BCEWithLogitsLoss(pos_weight=absent / present.double())
    torch.testing.assert_close(
        balanced.losses(outputs[:1, :2], whole).mean(), reference(outputs[0, :2], whole.double())
    )
    with pytest.raises(lc.UserError, match="label 'b' applies to none of the 2 training samples"):
        fitted("multilabel", targets.numpy().astype(np.int8), [0, 1], NAMES[:3])


@pytest.mark.parametrize("loss", REGRESSION.training_losses)
def test_numbers_are_learned_standardised_and_come_back_in_their_unit(loss):
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(20, 2)) * [3, 0.01] + [100, -5]).astype(np.float32)
    train = np.arange(15)
    task = fitted("regression", values, train, ["height", "depth"], loss=loss)
    mean, deviation = values[train].astype(float).mean(0), values[train].astype(float).std(0)
    outputs = drawn(1, 20, 2)
    torch.testing.assert_close(
        task.predictions(outputs), outputs * torch.from_numpy(deviation) + torch.from_numpy(mean)
    )
    off = outputs - torch.from_numpy((values - mean) / deviation)
    expected = {
        "mse": off**2,
        "l1": off.abs(),
        "huber": torch.where(off.abs() < 1, off**2 / 2, off.abs() - 0.5),
    }[loss]
    torch.testing.assert_close(task.losses(outputs, torch.from_numpy(values)), expected.mean(-1))
    classifier = nn.Linear(4, 2).double()
    x = drawn(20, 4)
    before = task.predictions(classifier(x)[None])[0]
    task.fold(classifier)
    torch.testing.assert_close(REGRESSION.restored(task.constants).predictions(classifier(x)[None])[0], before)
    with pytest.raises(lc.UserError, match="column 'depth' is -5 in all 3 training samples"):
        fitted("regression", np.float32([[1, -5], [2, -5], [4, -5]]), range(3), ["height", "depth"])


def test_what_a_task_does_not_have_is_refused_before_anything_is_read():
    with pytest.raises(
        lc.UserError, match="metric is 'top1', which the task 'regression' does not have: choose one of lo"
    ):
        TrainConfig(task="regression", metric="top1")
    with pytest.raises(
        lc.UserError, match="loss is 'mse', which the task 'multilabel' does not have: choose one of cro"
    ):
        TrainConfig(task="multilabel", loss="mse")
    with pytest.raises(lc.UserError, match="class-weights is 'balanced', but the loss of the task 'regression'"):
        TrainConfig(task="regression", class_weights="balanced")
    with pytest.raises(lc.UserError, match="metric is 'auroc', which is of two classes, and there are 4"):
        fitted("classification", np.array([0, 1, 2, 3]), range(4), metric="auroc")
    assert {get_task(name).kind for name in ("classification", "ordinal")} == {CLASS}
    assert (MANY.kind, REGRESSION.kind) == (MULTILABEL, NUMBERS)
