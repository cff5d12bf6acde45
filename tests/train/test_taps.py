"""Training from branches and from the embedding: what the side network is given, online as cached; what fits what."""

import json

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.factors import Codes
from losa_cache.sidenet.operand import dense
from losa_cache.train.cached import CachedSource
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import requests_in_order
from losa_cache.train.training_data import open_training_data
from tests.conftest import tiny_backbone, tiny_samples

CPU = torch.device("cpu")
READ = {  # of layers 2 and 4, written out
    ("block", "output"): ["block.2", "block.4"],
    ("block", "embedding"): ["block.2", "block.4", "embedding"],
    ("mlp", "output"): ["mlp.2", "mlp.4", "block.4"],
    ("attention", "embedding"): ["attention.2", "attention.4", "embedding"],
    ("both", "output"): ["attention.2", "mlp.2", "attention.4", "mlp.4", "block.4"],
    ("both", "embedding"): ["attention.2", "mlp.2", "attention.4", "mlp.4", "embedding"],
}
DEPTH = {"block": 2, "attention": 2, "mlp": 2, "both": 4}


def losses(run):
    return [json.loads(line)["train_loss"] for line in (run.run / "metrics.jsonl").read_text().splitlines()]


def options(tmp_path, name, **chosen):
    common = {"epochs": 2, "rank": 4, "lr": 0.01, "batch_size": 8, "val_fraction": 0.3, "device": "cpu", "layers": "2"}
    return common | {"out": tmp_path / name} | chosen


@pytest.mark.parametrize(("tap", "start"), READ)
def test_a_run_reads_its_points_in_order_online_as_from_the_cache(tap, start, tmp_path):
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    cache = extract(**given, tap=tap, embedding=start == "embedding", precision="int8", out=tmp_path / "c.zarr")
    source = CachedSource(cache, READ[tap, start], CPU)
    by_name = next(iter(source.batches(requests_in_order(np.arange(23), 23)))).blocks
    source.close()
    config = lc.TrainConfig(layers="2", start=start, val_fraction=0, head="last")
    online = lc.OnlineConfig("tiny0", "tiny", tap=tap, precision="int8")
    with open_training_data(cache, None, config, Placement(CPU)) as data:
        cached = next(iter(data.source.batches(requests_in_order(np.arange(23), 23)))).blocks
    with open_training_data(None, online, config, Placement(CPU), **given) as data:
        fresh = next(iter(data.source.batches(requests_in_order(np.arange(23), 23)))).blocks
    assert len(cached) == len(fresh) == len(READ[tap, start])
    assert [isinstance(block, Codes) for block in cached] == [True] * (len(cached) - 1) + [False]
    for expected, ours, theirs in zip(by_name, dense(cached), fresh, strict=True):
        assert torch.equal(ours, expected)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_online_and_cached_training_agree_for_every_tap_and_start_which_decide_the_losses(tmp_path):
    given, found = {"backbone": tiny_backbone(), "dataset": tiny_samples()}, []
    for tap, depth in DEPTH.items():
        cache = extract(**given, tap=tap, embedding=True, precision="float32", out=tmp_path / f"{tap}.zarr")
        online = lc.OnlineConfig("tiny0", "tiny", tap=tap, precision="float32")
        for start in ("output", "embedding"):
            name, chosen = f"{tap}-{start}", {"start": start, "lr": 0.1}
            run = lc.train(cache, **options(tmp_path, name, **chosen))
            fresh = lc.train(online=online, **given, **options(tmp_path, f"{name}-online", **chosen))
            assert losses(fresh) == pytest.approx(losses(run), rel=1e-5)
            assert all(abs(losses(run)[-1] - other) > 1e-4 for other in found)
            found.append(losses(run)[-1])
            written = json.loads((run.run / "adapter/config.json").read_text())
            assert (written["tap"], written["start"], written["adapter"]["depth"]) == (tap, start, depth)
            assert len(run.adapter.side.layers) == depth


def test_the_linear_probe_is_the_same_whatever_the_tap_and_the_start(tmp_path):
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    plain = extract(**given, precision="float32", out=tmp_path / "p.zarr")
    both = extract(**given, tap="both", precision="float32", out=tmp_path / "b.zarr")
    expected = losses(lc.train(plain, side="linear", **options(tmp_path, "plain")))
    run = lc.train(both, side="linear", start="embedding", **options(tmp_path, "both"))
    assert losses(run) == expected
    assert lc.evaluate_run(run.run)["samples"] == 7


def test_mixed_runs_take_the_caches_tap_and_refuse_another(tmp_path):
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    cache = extract(**given, tap="both", embedding=True, precision="float32", out=tmp_path / "c.zarr")
    expected = losses(lc.train(cache, **options(tmp_path, "cached", start="embedding")))
    mixed = lc.OnlineConfig("tiny0", "tiny", share=0.5)
    run = lc.train(cache, online=mixed, **given, **options(tmp_path, "mixed", start="embedding"))
    assert losses(run) == pytest.approx(expected, rel=1e-4)
    other = lc.OnlineConfig("tiny0", "tiny", share=0.5, tap="mlp")
    with pytest.raises(lc.UserError, match=r"differs in tap \(\"mlp\" of these images, \"both\" in the cache\)"):
        lc.train(cache, online=other, **given, **options(tmp_path, "other"))


def test_a_start_that_is_not_cached_is_refused_before_a_directory_is_made(tiny_cache, tmp_path):
    fresh = {"online": lc.OnlineConfig("tiny0", "tiny", share=0.5), "backbone": tiny_backbone()}
    for arguments in ({}, fresh | {"dataset": tiny_samples()}):
        with pytest.raises(lc.UserError, match="lacks the embedding, .* extract it with --embedding"):
            lc.train(tiny_cache, **arguments, **options(tmp_path, "run", start="embedding"))
    with pytest.raises(lc.UserError, match="unknown start 'middle': choose one of output, embedding"):
        lc.train(tiny_cache, **options(tmp_path, "run", start="middle"))
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_evaluated_on_its_own_tap_and_start_alone(tmp_path):
    backbone, test = tiny_backbone(), tiny_samples(9, split="test")
    train = extract(
        backbone, tiny_samples(), tap="both", embedding=True, layers=2, precision="float32", out=tmp_path / "t.zarr"
    )
    online = lc.OnlineConfig("tiny0", "tiny", share=0.5)
    run = lc.train(
        train,
        online=online,
        backbone=backbone,
        dataset=tiny_samples(),
        **options(tmp_path, "run", start="embedding", head="last"),
    ).run
    fitting = {"tap": "both", "embedding": True, "layers": 2, "precision": "float32"}
    caches = {
        name: extract(backbone, test, **(fitting | change), out=tmp_path / f"{name}.zarr").path
        for name, change in (
            ("fits", {}), ("more", {"layers": "all"}), ("block", {"tap": "block"}), ("bare", {"embedding": False}),
        )
    }  # fmt: skip
    on = {name: lc.evaluate_run(run, cache=caches[name])["loss"] for name in ("fits", "more")}
    direct = lc.evaluate_run(run, split="test", backbone=backbone, dataset=test)["loss"]
    assert on["more"] == pytest.approx(on["fits"], rel=1e-5)
    assert direct == pytest.approx(on["fits"], rel=1e-4)
    with pytest.raises(lc.UserError, match=r"does not fit .*tap \(\"both\" in training, \"block\" in these data\)"):
        lc.evaluate_run(run, cache=caches["block"])
    with pytest.raises(lc.UserError, match=r"does not fit .*start \(the embedding is not cached\)"):
        lc.evaluate_run(run, cache=caches["bare"])
