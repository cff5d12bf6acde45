"""``lc.load_adapter``: its logits against the figures of ``evaluate_run``, and where the frozen tail comes from."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.files import with_seal
from losa_cache.sidenet.adapter_folder import read_metrics
from tests.conftest import tiny_backbone, tiny_samples
from tests.earlier import as_earlier

CUT = {"precision": "float32", "device": "cpu"}
TRAINED = {"rank": 2, "epochs": 2, "lr": 0.01, "device": "cpu"}


@pytest.fixture
def caches(tmp_path):
    return [
        extract(
            tiny_backbone(), tiny_samples(count, split=split), embedding=True, out=tmp_path / f"{split}.zarr", **CUT
        )
        for split, count in (("train", 23), ("test", 17))
    ]


@pytest.fixture(scope="module")
def of_last_layer(tiny_original, tmp_path_factory):
    """A run to be copied and changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        return lc.train(tiny_original, head="last", out=folder / "run", **TRAINED).run


def logits(model, cache):
    options = {"points": model.points, "shuffle": False, "batch_size": 4, "device": "cpu"}
    with torch.inference_mode(), lc.batches(cache, **options) as batches:
        found = [(model(batch.blocks), batch.labels) for batch in batches]
    return torch.cat([own for own, _ in found]), torch.cat([labels for _, labels in found])


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({}, ["block.1", "block.2", "block.3", "block.4"]),
        ({"head": "last", "layers": 2}, ["block.2", "block.4"]),
        ({"head": "last", "start": "embedding"}, ["block.1", "block.2", "block.3", "block.4", "embedding"]),
        ({"side": "linear"}, ["block.4"]),
        ({"side": "fusion", "layers": 2}, ["block.2", "block.4"]),
        ({"side": "attentive"}, ["block.4"]),
    ],
)
def test_its_logits_give_the_figures_of_eval(options, points, caches, tmp_path):
    train, test = caches
    run = lc.train(train, out=tmp_path / "run", **TRAINED | options).run
    model = lc.load_adapter(run, cache=test.path, device="cpu")
    assert model.points == points
    assert model.classes == ["a", "b", "c"]
    assert not model.training
    found, labels = logits(model, test)
    expected = lc.evaluate_run(run, cache=test.path, device="cpu")
    assert found.shape == (17, 3)
    assert F.cross_entropy(found, labels).item() == pytest.approx(expected["loss"], rel=1e-5)
    assert 100 * (found.argmax(1) == labels).double().mean().item() == pytest.approx(expected["top1"])


@pytest.mark.parametrize("head", ["last", "all"])
def test_an_adapter_stands_alone(head, caches, tmp_path):
    train, test = caches
    run = lc.train(train, head=head, out=tmp_path / "run", **TRAINED).run
    expected, _ = logits(lc.load_adapter(run, cache=test, device="cpu"), test)
    kept = tmp_path / "kept.zarr"
    shutil.move(test.path, kept)
    shutil.move(run / "adapter", tmp_path / "alone")
    shutil.rmtree(run)
    shutil.rmtree(train.path)
    model = lc.load_adapter(tmp_path / "alone", device="cpu")
    assert torch.equal(logits(model, lc.open_cache(kept))[0], expected)
    assert model.config["format"] == "losa-cache adapter"
    assert str(tmp_path) not in "".join(file.read_text("latin-1") for file in (tmp_path / "alone").iterdir())


def test_what_eval_measures_is_written_beside_the_adapter(caches, tmp_path):
    train, test = caches
    run = lc.train(train, val_fraction=0.3, out=tmp_path / "run", **TRAINED).run
    for _ in range(2):
        figures = lc.evaluate_run(run, cache=test.path, device="cpu")
    held_out, tested = read_metrics(run)
    assert held_out["split"] == "held out of training"
    stored = {name: value for name, value in figures.items() if name != "tables"}
    assert tested == stored | {"on": "test.zarr", "split": "test", "samples": 17}
    alone = shutil.copytree(run / "adapter", tmp_path / "alone")
    (alone / "metrics.json").unlink()
    assert lc.evaluate_run(alone, cache=test.path, device="cpu") == figures
    assert read_metrics(alone) == [tested]
    assert not (alone / "eval.json").exists()
    with pytest.raises(lc.UserError, match="--split is for runs that were trained online"):
        lc.evaluate_run(alone, split="test", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "its format is 'other' and not 'losa-cache adapter'"),
        ({"version": 2}, "it is of version 2, and this losa-cache reads 1"),
        ({"tail": None}, "cannot be loaded"),
        ({"more": 1}, "more is unknown"),
        ({"start": "middle"}, "start is 'middle'"),
        ({"layers": [1, 1, 3, 4]}, r"layers is \[1, 1, 3, 4\]"),
        ({"fields": {"precision": None}}, "precision"),
        ({"fields": {"input": {"std": [0.0, 0.5, 0.5]}}}, "std"),
        ({"fields": {"input": {"size": [3, 0, 8]}}}, "size"),
        ({"fields": {"views": {"clips": 0}}}, "clips"),
        ({"fields": {"backbone": {"weights": 5}}}, "weights"),
    ],
)
def test_an_adapter_of_another_format_is_refused(change, message, of_last_layer, tmp_path):
    run = shutil.copytree(of_last_layer, tmp_path / "run")
    file = run / "adapter" / "config.json"
    config = json.loads(file.read_text())
    for name, value in change.pop("fields", {}).items():
        of = config["cache"]["fields"]
        of[name] = of[name] | value if isinstance(value, dict) else value
    config |= change
    del config["seal"]
    file.write_text(json.dumps(with_seal(config)))
    with pytest.raises(lc.UserError, match=message):
        lc.load_adapter(run)


def test_the_tail_of_an_earlier_adapter_comes_from_any_cache_that_fits(caches, tmp_path):
    train, test = caches
    run = lc.train(train, head="last", out=tmp_path / "run", **TRAINED).run
    expected, _ = logits(lc.load_adapter(run, device="cpu"), test)
    before = lc.evaluate_run(run, cache=test.path, device="cpu")
    as_earlier(run)
    file = run / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["seal"], config["sha256"], config["cache"]["fields"]["views"]  # which the first versions had not
    file.write_text(json.dumps(config))
    assert lc.evaluate_run(run, cache=test.path, device="cpu") == before
    assert torch.equal(logits(lc.load_adapter(run, device="cpu"), test)[0], expected)
    other = extract(tiny_backbone(1), tiny_samples(), out=tmp_path / "other.zarr", **CUT)
    with pytest.raises(lc.UserError, match="does not fit cache .*other.zarr': .*backbone"):
        lc.load_adapter(run, cache=other)
    shutil.rmtree(train.path)
    model = lc.load_adapter(run, device="cpu")  # by the other one, which is known to fit
    assert torch.equal(logits(model, test)[0], expected)
    shutil.rmtree(test.path)
    with pytest.raises(lc.UserError, match=r"no cache is known .*train.zarr' is not there.*pass cache="):
        lc.load_adapter(run)
    with pytest.raises(lc.UserError, match="holds no adapter"):
        lc.load_adapter(tmp_path)


def test_a_probe_reads_a_pooled_cache_too(caches, tmp_path):
    train, test = caches
    pooled = extract(tiny_backbone(), tiny_samples(17, split="test"), tokens="pooled", out=tmp_path / "p.zarr", **CUT)
    run = lc.train(train, side="linear", out=tmp_path / "run", **TRAINED).run
    model = lc.load_adapter(run, cache=pooled, device="cpu")
    assert model.points == ["tail"]
    whole, _ = logits(lc.load_adapter(run, cache=test, device="cpu"), test)
    assert torch.allclose(logits(model, pooled)[0], whole, atol=1e-5)
    losa = lc.train(train, out=tmp_path / "losa", **TRAINED).run
    with pytest.raises(lc.UserError, match="does not fit cache .*p.zarr': tokens"):
        lc.load_adapter(losa, cache=pooled)
