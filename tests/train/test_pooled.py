"""Linear probes from pooled rows as from all tokens, whatever the trunk ends in; and what needs all tokens."""

import json

import pytest
import torch

import losa_cache as lc
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.train.train import train
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_pooled import TRUNKS

OPTIONS = {"epochs": 3, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}


@pytest.fixture
def caches(tmp_path):
    """A full cache, and after it a pooled one, of one backbone and data set."""
    made = {}
    for tokens in ("all", "pooled"):
        out = tmp_path / f"{tokens}.zarr"
        made[tokens] = extract(tiny_backbone(), tiny_samples(), tokens=tokens, precision="float32", out=out)
    return made


def losses(run):
    lines = map(json.loads, (run.run / "metrics.jsonl").read_text().splitlines())
    return torch.tensor([[line["train_loss"], line["val_loss"]] for line in lines])


@pytest.mark.parametrize(
    ("kind", "side"),
    [
        ("class token", "linear"),
        ("norm before the mean", "linear"),
        ("norm behind the mean", "linear"),
        ("registers", "fusion"),
        ("attention", "fusion"),
        *(pytest.param(kind, "linear", marks=pytest.mark.slow) for kind in ("registers", "attention", "digits")),
    ],
)
def test_a_side_of_rows_is_the_same_function_of_the_image_from_either_cache_and_on_either(kind, side, tmp_path):
    named = ("vit_digits", "digits") if kind == "digits" else (tiny_backbone(**TRUNKS[kind]), tiny_samples())
    found, made = {}, {}
    for tokens in ("all", "pooled"):
        options = {"precision": "float32", "layers": 2, "limit": 40, "out": tmp_path / f"{tokens}.zarr"}
        made[tokens] = extract(*named, tokens=tokens, **options)
        stage = tmp_path / "near" if tokens == "pooled" else None
        found[tokens] = train(made[tokens], side=side, out=tmp_path / tokens, stage=stage, **OPTIONS)
    ours, theirs = found["pooled"], found["all"]
    torch.testing.assert_close(losses(ours), losses(theirs), rtol=1e-4, atol=1e-5)
    own, other = (run.adapter.trained_state() for run in (ours, theirs))
    assert own.keys() == other.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3 * float(other[name].abs().max()))
    tested = [
        lc.evaluate_run(run.run, cache=cache.path, device="cpu") for run in (ours, theirs) for cache in made.values()
    ]
    for result in tested:
        assert result["samples"] == len(made["all"].ids)
        assert result["loss"] == pytest.approx(tested[0]["loss"], rel=1e-3)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_fusion_goes_with_pooled_rows_of_every_precision(precision, caches, tmp_path):
    narrow = extract(
        tiny_backbone(), tiny_samples(), tokens="pooled", precision=precision, out=tmp_path / f"{precision}.zarr"
    )
    found = [
        train(cache, side="fusion", out=tmp_path / f"of_{place}", **OPTIONS)
        for place, cache in enumerate((narrow, caches["pooled"]))
    ]
    torch.testing.assert_close(*map(losses, found), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("side", ["losa", "mlp", "ladder", "attentive"])
def test_side_networks_over_tokens_say_that_they_need_the_full_cache(side, caches, tmp_path):
    with pytest.raises(UserError, match=f"holds pooled rows .* --side {side} needs all tokens: .*--tokens all"):
        train(caches["pooled"], side=side, rank=4, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_run_with_the_backbone_in_the_loop_needs_the_full_cache(share, caches, tmp_path):
    online = lc.OnlineConfig("tiny0", "tiny", share=share)
    with pytest.raises(UserError, match="holds pooled rows .* backbone in the loop needs all tokens"):
        train(caches["pooled"], online=online, side="linear", out=tmp_path / "run", **OPTIONS)


def test_without_a_name_the_latest_cache_is_taken_that_has_what_is_read(caches, tmp_path):
    read = {}
    for side in ("linear", "losa"):
        run = train(side=side, rank=4, out=tmp_path / side, **OPTIONS).run
        read[side] = json.loads((run / "config.json").read_text())["cache"]
    assert read == {"linear": str(caches["pooled"].path), "losa": str(caches["all"].path)}
    caches["all"].path.rename(tmp_path / "gone.zarr")
    with pytest.raises(UserError, match="no training cache of all tokens yet, only of pooled rows .* linear or fusion"):
        train(out=tmp_path / "run", **OPTIONS)


def test_an_adapter_over_tokens_does_not_fit_pooled_rows(caches, tmp_path):
    run = train(caches["all"], rank=4, out=tmp_path / "run", **OPTIONS).run
    with pytest.raises(UserError, match=r"does not fit .*tokens \(5 in training, 2 in these data\)"):
        lc.evaluate_run(run, cache=caches["pooled"].path, device="cpu")


def test_a_sweep_is_not_validated_on_rows_of_another_kind(caches, tmp_path):
    val = extract(tiny_backbone(), tiny_samples(split="test"), tokens="pooled", out=tmp_path / "val.zarr")
    assert open_cache(val.path).manifest.tokens["total"] == 2
    with pytest.raises(UserError, match=r"val-cache .* does not fit .*: tokens \(all in training, pooled in these"):
        lc.sweep(caches["all"], space={"rank": [2, 4]}, out=tmp_path / "sweep", val_cache=str(val.path))
