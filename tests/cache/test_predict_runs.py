"""Caches of predicted layers in whole runs: extracted, read by others, trained from, verified, interrupted."""

import math

import numpy as np
import pytest
import torch
import zarr

import losa_cache as lc
from losa_cache.cache.inspect import inspect_cache
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.verify import verify_cache
from tests.cache.test_predict import by_hand
from tests.conftest import results, tiny_backbone, tiny_samples


@pytest.fixture
def cache(tmp_path):
    return make(tmp_path)


def make(folder, **options):
    return extract(
        tiny_backbone(depth=6), tiny_samples(60), precision="predict:2", out=folder / "c.zarr", batch_size=4,
        shard_bytes=3_000, **options,
    )  # fmt: skip


def test_a_cache_is_read_by_zarr_alone_and_decoded_by_hand(cache):
    stored = zarr.open_array(str(cache.path / "activations" / "block"), mode="r")
    assert stored.shape == cache.layout.shape == (60, 1, 1, cache.layout.columns)
    group = zarr.open_group(str(cache.path / "scales"), mode="r")
    constants = {name: np.asarray(group[name][...]) for name in group.array_keys()}
    theirs = by_hand(np.asarray(stored[17, 0, 0]), constants, tokens=5, prefix=1)
    planes = [torch.from_numpy(np.asarray(stored[17:18, 0]))]
    for own, block in zip(theirs, cache.encoding().decode(planes), strict=True):
        assert np.linalg.norm(block[0].double().numpy() - own) < 0.02 * np.linalg.norm(own)


def test_inspecting_tells_bytes_errors_and_what_is_read(cache):
    found = inspect_cache(cache.path)
    width = cache.manifest.width
    assert found["bytes"]["as_float32"] == 60 * 6 * 5 * width * 4
    assert found["bytes"]["stored"] == cache.stored_bytes
    assert found["encoding"]["bits"] == pytest.approx(8 * cache.layout.columns / (6 * 5 * width), abs=1e-4)
    assert found["layers_read"].startswith("all")
    fresh, fitted = found["encoding"]["error"], found["encoding"]["fitted_error"]
    assert len(fresh) == len(fitted) == 6
    assert np.mean(fresh) > np.mean(fitted) > 0


@pytest.mark.slow
def test_a_cache_trains_from_any_place_alike_and_online(cache, tmp_path):
    options = {"rank": 4, "epochs": 3, "lr": 0.01, "batch_size": 8, "val_fraction": 0.2, "layers": "3", "device": "cpu"}
    runs = {
        place: results(lc.train(cache, out=tmp_path / place, residency=place, **options).run)
        for place in ("memory", "disk")
    }
    fresh = lc.OnlineConfig("tiny", "tiny", precision="predict:2")
    online = lc.train(
        online=fresh, backbone=tiny_backbone(depth=6), dataset=tiny_samples(60), out=tmp_path / "online", **options
    )
    losses = [[epoch["train_loss"] for epoch in own] for own in (*runs.values(), results(online.run))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[2] == pytest.approx(losses[0], rel=0.1)


def test_verify_recomputes_and_repairs(cache):
    backbone, samples = tiny_backbone(depth=6), tiny_samples(60)
    found = verify_cache(cache.path, recompute=20, backbone=backbone, dataset=samples)
    assert found["intact"]
    assert len(found["recomputed"]["error"]) == 6
    assert found["recomputed"]["error"] == pytest.approx(cache.manifest.encoding["error"], rel=0.5, abs=0.02)
    shard = cache.shard_path(1)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    assert not verify_cache(cache.path)["intact"]
    assert verify_cache(cache.path, repair=True, backbone=backbone, dataset=samples)["repaired"]
    assert shard.read_bytes() == whole


class Stop(Meter):
    def update(self):
        if self.images > 30:
            raise MemoryError


def test_an_interrupted_extraction_goes_on_to_the_same_bytes(cache, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(MemoryError):
        make(other, meter=Stop())
    done = [receipt.name for receipt in (other / "c.zarr.receipts").glob("0*.json")]
    assert 0 < len(done) < cache.layout.shards
    again = make(other)
    for shard in range(cache.layout.shards):
        assert again.shard_path(shard).read_bytes() == cache.shard_path(shard).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"tap": "both", "embedding": True},
        *(pytest.param({"layers": layers}, marks=pytest.mark.slow) for layers in (1, "6", 2)),
    ],
)
def test_any_points_can_be_chained(options, tmp_path):
    cache = make(tmp_path, **options)
    run = lc.train(cache, rank=2, epochs=1, val_fraction=0.2, out=tmp_path / "run", device="cpu")
    assert math.isfinite(run.metrics["val_loss"])
    assert len(cache.manifest.encoding["error"]) == len(cache.manifest.points)
