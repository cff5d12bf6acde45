"""Dense tasks from a cache: trained, evaluated, resumed, searched, loaded, predicted and exported like others."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.sidenet.dense import DenseAdapter
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import DEPTH, MASK, TargetSet
from losa_cache.train.config import TrainConfig
from losa_cache.train.online_config import OnlineConfig
from tests.conftest import results, tiny_backbone, tiny_samples

OPTIONS = {"rank": 2, "epochs": 3, "batch_size": 8, "lr": 3e-2, "val_fraction": 0.3}
CLASSES = ["sky", "road", "pole"]


@pytest.fixture
def dense_cache(tiny_cache):
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 3, (23, 8, 8)).astype(np.uint8)
    mask[:, :2] = 255
    add_targets(tiny_cache, TargetSet("scene", MASK, CLASSES, mask))
    depth = np.exp(generator.normal(2, 0.5, (23, 8, 8))).astype(np.float32)
    depth[0, 0] = np.nan
    add_targets(tiny_cache, TargetSet("metres", DEPTH, ["depth"], depth))
    return lc.open_cache(tiny_cache.path)


@pytest.mark.parametrize(
    ("task", "side", "options"),
    [
        ("segmentation", "losa", {"head": "all", "decoder": "conv", "class_weights": "balanced"}),
        pytest.param("segmentation", "linear", {"head": "all", "lr": 1e-2}, marks=pytest.mark.slow),
        ("depth", "losa", {"head": "last"}),
    ],
)
def test_a_run_is_evaluated_and_its_adapter_gives_the_same_maps_anywhere(task, side, options, dense_cache, tmp_path):
    run = lc.train(dense_cache, out=tmp_path / "run", task=task, side=side, device="cpu", **OPTIONS | options).run
    lines = results(run)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    figures = lc.evaluate_run(run, device="cpu")
    names = ["loss", "miou", "pixel_accuracy"] if task == "segmentation" else ["loss", "rmse", "delta1", "absrel"]
    for name in names:
        assert figures[name] == pytest.approx(lines[-1][f"val_{name}"], rel=1e-4)
    model = lc.load_adapter(run / "adapter", device="cpu")
    assert model.points == [f"block.{layer}" for layer in range(1, 5)]
    with lc.batches(dense_cache, points=model.points, shuffle=False, val_fraction=0, device="cpu") as batches:
        found = {name: maps for batch in batches for name, maps in zip(batch.ids, model(batch.blocks), strict=True)}
    targets = dense_cache.target_set("scene" if task == "segmentation" else "metres")
    with torch.inference_mode():
        large = F.interpolate(torch.stack([found[name] for name in dense_cache.sample_ids]), (8, 8), mode="bilinear")
    decided = large.argmax(1) if task == "segmentation" else large[:, 0].exp()
    held_out = [at for at, name in enumerate(dense_cache.sample_ids) if name in _held_out(dense_cache)]
    truth = torch.from_numpy(targets.values[held_out])
    if task == "segmentation":
        known = truth != 255
        accuracy = 100 * (decided[held_out] == truth)[known].double().mean()
        assert figures["pixel_accuracy"] == pytest.approx(float(accuracy))
        told = figures["tables"]["classes"]
        assert [own["class"] for own in told] == CLASSES
        assert figures["miou"] == pytest.approx(100 * np.mean([own["iou"] for own in told if own["iou"] is not None]))
    else:
        error = (decided[held_out] - truth).square().nanmean().sqrt()
        assert figures["rmse"] == pytest.approx(float(error), rel=1e-5)
    samples, transform = tiny_samples(), tiny_backbone().input.transform()
    pixels = torch.stack([transform(samples.load(samples.ids.index(name))) for name in found])
    adapted = lc.AdaptedModel(tiny_backbone(), {"one": model})
    torch.testing.assert_close(adapted(pixels)["one"], torch.stack([*found.values()]).detach(), rtol=1e-4, atol=1e-5)
    assert adapted.embed(pixels)["one"].shape == (23, 32)


def _held_out(cache):
    with lc.batches(cache, val_fraction=OPTIONS["val_fraction"], device="cpu") as batches:
        return {name for batch in batches.held_out() for name in batch.ids}


@pytest.mark.usefixtures("no_figures")
def test_trials_train_together_as_each_by_itself(dense_cache, tmp_path):
    config = TrainConfig(task="segmentation", decoder="conv", **OPTIONS | {"lr": None})
    found = lc.sweep(dense_cache, space={"lr": [1e-3, 3e-2]}, config=config, out=tmp_path / "sweep", device="cpu")
    alone = lc.train(dense_cache, out=tmp_path / "alone", config=config, lr=3e-2, device="cpu").run
    for ours, theirs in zip(results(tmp_path / "sweep/trials/0001"), results(alone), strict=True):
        for name in ("train_loss", "val_miou", "val_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    assert found.record.chosen == max(found.record.trials, key=lambda trial: trial.value).number


def test_an_online_run_learns_the_same_maps(dense_cache, tmp_path):
    options = OPTIONS | {"epochs": 1, "task": "depth", "device": "cpu"}
    cached = lc.train(dense_cache, out=tmp_path / "cached", **options).run
    online = OnlineConfig(backbone="tiny", dataset="tiny", workers=1, precision="float32", share=0.5)
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    mixed = lc.train(dense_cache, online=online, out=tmp_path / "mixed", **given, **options).run
    for name in ("train_loss", "val_rmse"):
        assert results(mixed)[0][name] == pytest.approx(results(cached)[0][name], rel=1e-4)
    cropped = OnlineConfig(backbone="tiny", dataset="tiny", workers=1, precision="float32", augment="crop")
    with pytest.raises(lc.UserError, match="augment is 'crop', but targets of the task 'depth' do not"):
        lc.train(dense_cache, online=cropped, out=tmp_path / "no", **given, **options)


def test_what_makes_no_maps_is_refused(dense_cache, tmp_path):
    with pytest.raises(lc.UserError, match="side is 'fusion', which gives one vector an image"):
        TrainConfig(task="segmentation", side="fusion")
    run = lc.train(dense_cache, out=tmp_path / "run", task="segmentation", device="cpu", **OPTIONS | {"epochs": 1}).run
    config = run / "adapter/config.json"
    written = json.loads(config.read_text())
    assert isinstance(lc.load_adapter(run, device="cpu").adapter, DenseAdapter)
    for dense, told in (
        (None, "does not go with no decoder"),
        ({"decoder": "deep", "grid": [2, 2]}, "decoder is 'deep'"),
    ):
        config.write_text(json.dumps(written | {"adapter": written["adapter"] | {"dense": dense}}))
        with pytest.raises(lc.UserError, match=told):
            lc.load_adapter(run, device="cpu")
