"""Batches of a cache on a GPU: the same from every place, and never overwritten while the device still reads them."""

import gc

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.machine import memory
from losa_cache.points import tapped_points
from losa_cache.sidenet.backend import use_backend
from losa_cache.sidenet.operand import Gathered, dense
from losa_cache.train import cached, preload
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource
from losa_cache.train.residency import DEVICE_SHARE, Residency
from tests.conftest import tiny_backbone, tiny_samples

pytestmark = pytest.mark.cuda
POINTS = tapped_points("block", [2, 3, 4])
PLACES = [
    Residency("disk"),
    Residency("memory"),
    Residency("device"),
    Residency("split", share=0.5),
    Residency("split", share=0.9),
]
DECODED = [Residency("memory", decoded=True), Residency("device", decoded=True)]
SLEEP = 5_000_000  # cycles, some milliseconds


def tiny(precision, tmp_path):
    return extract(
        tiny_backbone(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr", shard_bytes=9_000, device="cpu"
    )


def requests(count):
    generator = np.random.default_rng(0)
    return [Request(generator.permutation(23)[:size]) for size in [7] * count + [4]]


@pytest.fixture
def small_stages(monkeypatch):
    """Load rows two by two, so that stages are used again."""
    monkeypatch.setattr(preload, "STAGE_BYTES", 1)
    monkeypatch.setattr(preload, "default_workers", lambda: 2)


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("rank", [0, 4], ids=["values", "folded"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4", "predict:2"])
def test_every_place_gives_the_same_batches(precision, rank, tmp_path, gpu):
    cache, asked = tiny(precision, tmp_path), requests(6)
    expected = []
    for place in [*PLACES, *DECODED]:
        source = CachedSource(cache, POINTS, gpu, residency=place, rank=rank)
        found = []
        for _ in range(2):
            for batch, request in zip(source.batches(asked), asked, strict=True):
                assert batch.labels.tolist() == cache.labels[request.samples].tolist()
                assert batch.ids == [cache.ids[row] for row in request.samples]
                found.append([block.clone() for block in dense(batch.blocks)])
        source.close()
        expected = expected or found
        for ours, theirs in zip(found, expected, strict=True):
            if place.decoded and precision == "predict:2":  # decoded in batches of another size: other sums in products
                assert all(torch.allclose(a, b, rtol=0.1, atol=0.1) for a, b in zip(ours, theirs, strict=True))
            else:
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    if precision in ("float32", "bfloat16"):
        on_cpu = CachedSource(cache, POINTS, torch.device("cpu")).batches(asked)
        for batch, blocks in zip(on_cpu, expected, strict=False):
            assert all(torch.equal(a, b.cpu()) for a, b in zip(dense(batch.blocks), blocks, strict=True))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.where}-{place.share}")
def test_a_slow_step_reads_what_it_was_given(place, precision, tmp_path, gpu):
    cache, asked = tiny(precision, tmp_path), requests(20)
    whole = CachedSource(cache, POINTS, gpu, rank=4)
    (every,) = whole.batches([Request(np.arange(23))])
    every = [block.clone() for block in dense(every.blocks)]
    source, read = CachedSource(cache, POINTS, gpu, residency=place, rank=4), []
    for batch in source.batches(asked):
        torch.cuda._sleep(SLEEP)  # the host, and the copies of later batches, run ahead
        read.append([block.clone() for block in dense(batch.blocks)])
    for request, blocks in zip(asked, read, strict=True):
        samples = torch.from_numpy(request.samples).to(gpu)
        assert all(torch.equal(block, values[samples]) for block, values in zip(blocks, every, strict=True))
    source.close()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.where}-{place.share}")
def test_a_batch_that_is_left_half_way_does_no_harm(place, tmp_path, gpu):
    cache, asked = tiny("bfloat16", tmp_path), requests(6)
    source = CachedSource(cache, POINTS, gpu, residency=place)
    expected = [[block.clone() for block in batch.blocks] for batch in source.batches(asked)]
    for stop in range(4):
        for at, _ in enumerate(source.batches(asked[::-1])):
            torch.cuda._sleep(SLEEP)
            if at == stop:
                break
        found = [[block.clone() for block in batch.blocks] for batch in source.batches(asked)]
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    source.close()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.where}-{place.share}")
def test_a_batch_lies_at_few_addresses(place, precision, tmp_path, gpu):
    source, found = CachedSource(tiny(precision, tmp_path), POINTS, gpu, residency=place, rank=4), set()
    for _ in range(3):
        for batch in source.batches(requests(8)):
            assert batch.fixed
            tensors = [
                tensor
                for block in batch.blocks
                for tensor in ([block] if isinstance(block, torch.Tensor) else vars(block).values())
                if isinstance(tensor, torch.Tensor)
            ]
            assert all(tensor.device.type == "cuda" for tensor in tensors)
            found.add(tuple(tensor.data_ptr() for tensor in tensors))
    assert len(found) == (1 if place.where == "device" else 2)
    if place.where == "device" and precision == "bfloat16":
        assert all(isinstance(block, Gathered) for block in batch.blocks)
    source.close()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_run_ends_alike_wherever_its_cache_was_kept(precision, tmp_path, monkeypatch, caplog):
    cache = tiny(precision, tmp_path)
    options = {"rank": 4, "epochs": 3, "lr": 0.01, "batch_size": 2, "val_fraction": 0.3, "device": "cuda"}
    backend = "torch" if precision == "float32" else "triton"  # the faster one may be another in another place

    def end(out, place):
        with use_backend(backend):
            return lc.train(cache, out=tmp_path / out, residency=place, **options).adapter.trained_state()

    ends = [end(place, place) for place in ("device", "memory", "disk")]
    nearly = int(0.95 * 23 * 4 * cache.layout.block_bytes / DEVICE_SHARE)
    monkeypatch.setattr(cached, "available_memory", lambda device: 10**9 if device.type == "cpu" else nearly)
    caplog.set_level("INFO", "losa_cache")
    ends.append(end("split", "device"))
    assert any(said.endswith("are kept in the device's memory, the rest in the host's.") for said in caplog.messages)
    for other in ends[1:]:
        assert all(torch.equal(ends[0][name], other[name]) for name in other)


def test_large_memory_is_page_locked_where_it_lies(monkeypatch, gpu):
    monkeypatch.setattr(memory, "LOCKED_IN_PLACE", 0)
    for rows in (3, 5, 3):
        ours = memory.allocate((rows, 1000, 7), torch.bfloat16, torch.device("cpu"), pin=True)
        assert ours.shape == (rows, 1000, 7)
        assert ours.is_pinned()
        ours.copy_(torch.arange(rows * 7000).view_as(ours))
        there = torch.empty_like(ours, device=gpu)
        there.copy_(ours, non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(there.cpu(), ours)
        del ours
        gc.collect()
