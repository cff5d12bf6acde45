"""The backbone in the loop on a GPU: the same batches and losses as from a cache, step by step."""

from functools import partial

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.calibrate import fit_encoding
from losa_cache.extract.extract import extract
from losa_cache.inputs import open_inputs
from losa_cache.points import tapped_points
from losa_cache.sidenet.operand import dense
from losa_cache.tasks.classification import TASK
from losa_cache.train.cached import CachedSource, open_cached
from losa_cache.train.loop import EpochProgress, make_optimizer, train_epoch
from losa_cache.train.memoised import MemoisedSource
from losa_cache.train.mixed import MixedSource
from losa_cache.train.online import OnlineSource
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import requests_in_order
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples

pytestmark = pytest.mark.cuda
LAYERS = (2, 4)
CONFIG = lc.TrainConfig(rank=4, layers="2", epochs=3, lr=0.01, batch_size=8)
# relative difference of any step's loss, against training from unrounded activations, in bfloat16 products
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2, "int8": 3e-2, "int4": 2e-1, "predict:3": 2e-1}


def trunk():
    return tiny_backbone(embed_dim=64)


def online(gpu, precision):
    inputs = open_inputs(trunk(), tiny_samples(), precision=precision, device=gpu)
    points, encoding = tapped_points("block", LAYERS), fit_encoding(inputs, workers=2)
    return OnlineSource(inputs, points, encoding, inputs.manifest.points, workers=2)


def losses(source, cache, gpu):
    adapter = new_adapter(cache.manifest, frozen_tail(cache), CONFIG).to(gpu)
    optimizer, found = make_optimizer(adapter, CONFIG), []
    autocast = Placement(gpu).autocast(cache.manifest.precision)
    for epoch in range(CONFIG.epochs):
        passed, sums = EpochProgress(), [0.0]
        train_epoch(
            adapter, optimizer, source, cache.samples, CONFIG, epoch=epoch, autocast=autocast, passed=passed,
            after_step=lambda passed=passed, sums=sums: sums.append(passed.loss.item()),
        )  # fmt: skip
        found.extend(np.diff(sums))
    source.close()
    return found


@pytest.mark.parametrize("precision", BOUNDS)
def test_online_mixed_and_cached_training_give_the_same_losses_step_by_step(precision, tmp_path, gpu):
    cache = extract(trunk(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr", device="cuda", batch_size=8)
    points = tapped_points("block", LAYERS)
    wanted = losses(CachedSource(cache, points, gpu), cache, gpu)
    assert len(wanted) == 9
    assert sum(wanted[6:]) < sum(wanted[:3])
    np.testing.assert_allclose(losses(online(gpu, precision), cache, gpu), wanted, rtol=BOUNDS[precision])
    mixed = MixedSource(online(gpu, precision), CachedSource(cache, points, gpu), 0.25, partial(TASK.soft, outputs=3))
    np.testing.assert_allclose(losses(mixed, cache, gpu), wanted, rtol=BOUNDS[precision])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("where", ["device", "memory"])
def test_a_cache_in_memory_gives_the_losses_of_the_disk(where, precision, tmp_path, gpu):
    cache = extract(trunk(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr", device="cuda", batch_size=8)
    points = tapped_points("block", LAYERS)
    kept = open_cached(cache, points, Placement(gpu, where), samples=cache.samples, passes=9, rank=4)
    from_disk = losses(CachedSource(cache, points, gpu, rank=4), cache, gpu)
    np.testing.assert_allclose(losses(kept, cache, gpu), from_disk, rtol=1e-5 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "int4", "predict:3"])
def test_plain_online_batches_are_what_the_cache_holds(precision, tmp_path, gpu):
    cache = extract(trunk(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr", device="cuda", batch_size=23)
    requests = requests_in_order(np.arange(23), 23)
    cached, fresh = CachedSource(cache, tapped_points("block", LAYERS), gpu), online(gpu, precision)
    ours, theirs = (next(iter(source.batches(requests))) for source in (cached, fresh))
    assert ours.ids == theirs.ids
    assert torch.equal(ours.labels, theirs.labels)
    for one, other in zip(dense(ours.blocks), dense(theirs.blocks), strict=True):
        assert one.dtype == other.dtype
        assert one.device.type == other.device.type == "cuda"
        assert torch.equal(one, other)
    cached.close()
    fresh.close()


def test_held_out_features_are_kept_on_the_device_as_they_were(gpu):
    source = online(gpu, "bfloat16")
    kept, requests = MemoisedSource(source, gpu), requests_in_order(np.arange(23), 8)
    first, second = ([batch.blocks[1].clone() for batch in kept.batches(requests)] for _ in range(2))
    again = [batch.blocks[1].clone() for batch in source.batches(requests)]
    for one, two, three in zip(first, second, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    source.close()
