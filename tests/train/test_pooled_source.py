"""Rows that are pooled once and kept, against the same rows pooled from every batch anew."""

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.sidenet.pooled import Pooling
from losa_cache.train import training_data
from losa_cache.train.cached import CachedSource
from losa_cache.train.pooled_source import PooledSource
from losa_cache.train.sampler import Weights, epoch_requests, requests_in_order
from tests.conftest import results, tiny_backbone, tiny_samples

CPU = torch.device("cpu")


def test_every_view_of_every_sample_is_kept_with_its_label_and_id(tmp_path):
    cache = extract(
        tiny_backbone(), tiny_samples(bad=(4,)), precision="float32", views=3, augment="crop", out=tmp_path / "v.zarr",
        on_error="skip",
    )  # fmt: skip
    pooling, points = Pooling(1, 1), ["block.2", "block.4"]
    samples = np.random.default_rng(0).permutation(cache.samples)[:15]
    plain = CachedSource(cache, points, CPU, seed=5)
    whole = CachedSource(cache, points, CPU, seed=5)
    kept = PooledSource(whole, pooling, samples, ids=cache.ids, views=3, seed=5)
    weights = Weights(np.linspace(0, 1, 15), cache.labels[::3][samples])  # some come twice, and show other views
    epochs = [
        epoch_requests(samples, batch_size=4, seed=1, epoch=epoch, weights=own)
        for epoch, own in ((0, None), (1, weights), (2, None))
    ]
    for requests in [*epochs, requests_in_order(samples, 4)]:
        for ours, theirs in zip(kept.batches(requests), plain.batches(requests), strict=True):
            assert ours.ids == theirs.ids
            assert torch.equal(ours.labels, theirs.labels)
            for mine, block in zip(ours.blocks, theirs.blocks, strict=True):
                torch.testing.assert_close(mine, pooling(block), rtol=1e-6, atol=1e-6)
    kept.close()
    plain.close()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_run_reads_its_cache_once_and_ends_as_one_that_reads_every_epoch(precision, tmp_path, monkeypatch):
    cache = extract(tiny_backbone(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr")
    options = {"side": "fusion", "epochs": 3, "lr": 0.01, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}
    lc.train(cache, out=tmp_path / "kept", **options)
    monkeypatch.setattr(training_data, "KEEP_SHARE", 0.0)
    lc.train(cache, out=tmp_path / "again", **options)
    for kept, again in zip(results(tmp_path / "kept"), results(tmp_path / "again"), strict=True):
        assert kept == pytest.approx(again, rel=1e-5)
