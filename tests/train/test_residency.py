"""Where block outputs are kept changes nothing but time."""

import re
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.cache import compression
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.factors import Codes
from losa_cache.points import tapped_points
from losa_cache.sidenet.operand import Gathered, Normed, dense
from losa_cache.sidenet.pooled import Pooling
from losa_cache.train import cached, preload
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource, open_cached
from losa_cache.train.fixed_codes import FixedCodes
from losa_cache.train.loaders import Buffers
from losa_cache.train.placement import Placement
from losa_cache.train.residency import DEVICE_SHARE, MEMORY_SHARE, Residency, Sizes, choose_residency, rows_on_device
from losa_cache.train.sampler import requests_in_order
from tests.conftest import tiny_backbone, tiny_samples
from tests.forked import Forked

CPU = torch.device("cpu")
OPTIONS = {"rank": 4, "epochs": 3, "lr": 0.01, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}
PLACES = [
    Residency("disk"),
    Residency("disk", direct=True),
    Residency("memory"),
    Residency("memory", decoded=True),
    Residency("device"),
    Residency("device", decoded=True),
    Residency("split", share=0.4),
    Residency("split", share=0.01),  # of so few rows none
]
GB = 10**9


def sizes(**changed) -> Sizes:
    return Sizes(**({"stored": 2 * GB, "decoded": None, "device": None, "memory": 10 * GB, "passes": 9} | changed))


@pytest.mark.parametrize(
    ("asked", "have", "where"),
    [
        ("auto", sizes(), "memory"),
        ("auto", sizes(device=20 * GB), "device"),
        ("auto", sizes(device=2 * GB), "split"),
        ("auto", sizes(device=2 * GB, memory=3 * GB), "split"),
        ("auto", sizes(device=GB // 5), "memory"),  # it would hold a fourteenth
        ("auto", sizes(device=GB // 5, memory=3 * GB), "disk"),
        ("auto", sizes(device=2 * GB, memory=GB // 2), "disk"),
        ("device", sizes(device=GB // 5), "split"),
        ("auto", sizes(device=20 * GB, passes=1), "disk"),
        ("device", sizes(), "memory"),  # the CPU's own
        ("memory", sizes(device=20 * GB, passes=1), "memory"),
        ("disk", sizes(device=20 * GB), "disk"),
    ],
)
def test_auto_is_the_fastest_place_that_fits(asked, have, where):
    found = choose_residency(asked, have)
    assert found.where == where
    assert found.reason.endswith(".")


def test_values_are_kept_in_place_of_codes_where_they_fit():
    assert choose_residency("auto", sizes(decoded=5 * GB)).decoded
    assert not choose_residency("auto", sizes(decoded=9 * GB)).decoded
    assert not choose_residency("auto", sizes(decoded=None)).decoded


def test_the_page_cache_is_passed_by_only_where_it_cannot_hold_what_is_read():
    assert choose_residency("auto", sizes(stored=11 * GB)).direct
    assert not choose_residency("auto", sizes(stored=9 * GB)).direct
    assert not choose_residency("auto", sizes(stored=11 * GB, remote=True)).direct


@given(
    st.sampled_from(["auto", "device", "memory", "disk"]),
    st.builds(
        Sizes,
        stored=st.integers(1, 100),
        decoded=st.none() | st.integers(1, 400),
        device=st.none() | st.integers(0, 100),
        memory=st.integers(0, 100),
        passes=st.integers(1, 3),
        batch=st.integers(0, 30),
        plane=st.integers(0, 5),
        made=st.integers(0, 30),
        normed=st.integers(0, 30),
        pooled=st.integers(0, 50),
    ),
)
def test_nothing_is_kept_where_it_does_not_fit(asked, have):
    try:
        found = choose_residency(asked, have)
    except UserError:
        assert asked in {"device", "memory"}
        return
    kept = have.decoded if found.decoded else have.stored
    normed = found.decoded or have.decoded is None
    if found.where == "device" or (found.where == "memory" and have.device is None):
        kept += have.pooled * normed
    if found.where == "device":
        codes = have.made > 0 and not found.decoded
        assert kept + codes * (have.batch + have.made + have.normed) <= DEVICE_SHARE * have.device
    if found.where == "memory":
        assert kept <= MEMORY_SHARE * have.memory
    if found.where == "split":
        on_device = rows_on_device(100, found.share).sum() / 100 * kept
        beside = 2 * have.batch + have.plane + have.made + have.normed
        assert on_device + beside <= DEVICE_SHARE * have.device + 1e-9
        assert int(kept * (1 - found.share)) <= MEMORY_SHARE * have.memory


def test_what_does_not_fit_the_device_whole_is_split_and_said():
    found = choose_residency("device", sizes(stored=52 * GB, decoded=99 * GB, device=45 * GB, memory=100 * GB))
    assert found.reason == "31.5 GB of 52.0 GB are kept in the device's memory, the rest in the host's."
    assert not found.decoded
    crossing = choose_residency("device", sizes(stored=52 * GB, device=45 * GB, memory=100 * GB, batch=3 * GB))
    assert crossing.reason.startswith("25.5 GB of 52.0 GB")
    assert crossing.share == pytest.approx(25.5 / 52)
    assert choose_residency("auto", sizes(device=GB // 5, memory=3 * GB)).reason.endswith(
        "only 1.8 GB of memory may be taken, and 140.0 MB of the device's."
    )


def test_batches_that_fill_the_device_leave_nothing_to_keep_there():
    """Half of 16 GB, and batches of 256 images of ViT-H, 5.4 GB: two of them, and no room for a step."""
    asked = sizes(stored=16 * GB, device=int(11.5 * GB), memory=100 * GB, batch=int(5.4 * GB))
    found = choose_residency("device", asked)
    assert found.where == "memory"
    assert found.reason == "16.0 GB are kept in memory, for batches alone fill what may be taken of the device's."
    assert choose_residency("auto", asked).where == "memory"
    with pytest.raises(UserError, match="--residency device needs 16.0 GB"):
        choose_residency("device", replace(asked, memory=20 * GB))


def test_codes_on_the_device_are_kept_beside_what_is_made_of_a_batch():
    codes = sizes(stored=6 * GB, decoded=24 * GB, device=10 * GB, batch=GB // 2, plane=GB // 8)
    assert choose_residency("auto", codes).where == "device"
    assert choose_residency("auto", replace(codes, made=4 * GB)).share == pytest.approx((7 - 1 - 0.125 - 4) / 6)
    assert choose_residency("auto", replace(codes, made=4 * GB, device=40 * GB)).decoded  # values need none of it


@pytest.mark.parametrize(
    ("precision", "rank", "values"), [("bfloat16", 4, 0), ("int8", 4, 2), ("int8", 0, 6), ("predict:2", 4, 6)]
)
def test_what_a_batch_takes_is_counted(precision, rank, values, tmp_path, monkeypatch):
    cache = extract(tiny_backbone(), tiny_samples(9), precision=precision, out=tmp_path / "c.zarr")
    asked = []
    monkeypatch.setattr(cached, "choose_residency", lambda *given: asked.append(given) or choose_residency(*given))
    options = {"samples": cache.samples, "passes": 9, "rank": rank, "batch_size": 7}
    for pooling in (None, Pooling(classes=1, prefix=1)):
        points = tapped_points("block", [1, 3, 4])
        open_cached(cache, points, Placement(CPU, "disk"), pooling=pooling, **options).close()
    (_, counted), (_, normed) = asked
    width = cache.manifest.width * cache.precision.dtype.itemsize
    assert counted.made == values * 7 * cache.manifest.shape[1] * width
    assert counted.normed == 0
    assert normed.normed == 6 * 7 * cache.manifest.shape[1] * width
    assert counted.plane == 7 * cache.layout.block_bytes
    assert counted.batch % counted.plane == 0


@given(st.integers(0, 300), st.floats(0, 1))
def test_rows_on_the_device_are_spread_evenly(count, share):
    there = rows_on_device(count, share)
    assert len(there) == count
    so_far = np.cumsum(there)
    assert all(abs(so_far - share * np.arange(1, count + 1)) <= 1 + 1e-9)
    assert there.sum() <= share * count + 1e-9


@pytest.mark.parametrize("asked", ["device", "memory"])
def test_a_place_that_is_too_small_is_refused_in_a_sentence(asked):
    with pytest.raises(
        UserError, match=r"--residency \w+ needs 2\.0 GB, but may use only .* kB: choose fewer --layers"
    ):
        choose_residency(asked, sizes(memory=10**6, device=10**6))
    with pytest.raises(UserError, match="unknown residency 'ram': choose one of auto, device, memory, disk"):
        choose_residency("ram", sizes())


@pytest.mark.parametrize(
    ("precision", "worth"),
    [
        ("bfloat16", 0),
        ("int4", 0),
        ("int8", 2),
        ("predict:2", 2),
        pytest.param("float32", 0, marks=pytest.mark.slow),
        pytest.param("int8", 0, marks=pytest.mark.slow),
        pytest.param("predict:2", 0, marks=pytest.mark.slow),
    ],
)  # chunks are decompressed alike whatever they hold: rows of codes, or layers that are read together
def test_every_place_gives_the_same_batches(precision, worth, tmp_path, monkeypatch):
    monkeypatch.setattr(preload, "STAGE_BYTES", 1)  # rows are loaded two by two
    monkeypatch.setattr(preload, "default_workers", lambda: 2)
    monkeypatch.setattr(compression, "WORTH_BYTES", 0)
    monkeypatch.setattr(compression, "WORTH_RATIO", worth)
    cache = extract(
        tiny_backbone(),
        tiny_samples(bad=(3,)),
        precision=precision,
        out=tmp_path / "c.zarr",
        shard_bytes=3_000,
        views=2,
        augment="rand-m9-mstd0.5-inc1",
        on_error="skip",
    )
    assert cache.layout.shards > 1
    chosen = np.random.default_rng(0).permutation(cache.samples)[:15]
    requests = [Request(cut, epoch=epoch) for epoch in range(2) for cut in np.split(chosen, [4, 11])]
    found = []
    for place in PLACES:
        points = tapped_points("block", [2, 3, 4])
        source = CachedSource(cache, points, CPU, seed=1, residency=place, samples=chosen)
        batches = [([b.clone() for b in dense(x.blocks)], x.labels, x.ids) for x in source.batches(requests)]
        found.append(batches)
        source.close()
    for other in found[1:]:
        for (ours, labels, ids), (theirs, their_labels, their_ids) in zip(found[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert torch.equal(labels, their_labels)
            assert ids == their_ids


def test_rows_on_the_device_are_read_in_place(tiny_cache):
    points, requests = tapped_points("block", [2, 4]), requests_in_order(np.array([5, 3, 9, 1, 22]), 3)
    whole = [
        dense(batch.blocks)
        for batch in CachedSource(tiny_cache, points, CPU).batches(requests_in_order(np.arange(23), 23))
    ]
    source = CachedSource(tiny_cache, points, CPU, residency=Residency("device"), rank=4)
    addresses = set()
    for _ in range(2):
        for batch, request in zip(source.batches(requests), requests, strict=True):
            assert batch.fixed
            assert all(isinstance(block, Gathered) and block.rows is batch.blocks[0].rows for block in batch.blocks)
            addresses.add((batch.blocks[0].rows.data_ptr(), *(block.kept.data_ptr() for block in batch.blocks)))
            for block, values in zip(dense(batch.blocks), whole[0], strict=True):
                assert torch.equal(block, values[request.samples])
            assert batch.labels.tolist() == tiny_cache.labels[request.samples].tolist()
    assert len(addresses) == 1
    source.close()


@pytest.mark.parametrize("place", [Residency("memory"), Residency("device")], ids=["memory", "device"])
def test_blocks_that_stay_in_memory_are_normed_once(place, tiny_cache):
    points, requests = tapped_points("block", [2, 4]), requests_in_order(np.array([5, 3, 9, 1, 22]), 3)
    (whole,) = CachedSource(tiny_cache, points, CPU).batches(requests_in_order(np.arange(23), 23))
    pooling = Pooling(classes=1, prefix=1)
    source = CachedSource(tiny_cache, points, CPU, residency=place, pooling=pooling)
    for _ in range(2):
        for batch, request in zip(source.batches(requests), requests, strict=True):
            assert batch.fixed
            for block, values in zip(batch.blocks, dense(whole.blocks), strict=True):
                assert isinstance(block, Normed)
                x = values[request.samples].float()
                normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
                tokens, rows = pooling.read(block)
                torch.testing.assert_close(dense([tokens])[0].float(), normed, rtol=1e-2, atol=1e-2)
                pooled = torch.stack([normed[:, 0], normed[:, 1:].mean(1)], 1)
                torch.testing.assert_close(rows, pooled, rtol=1e-5, atol=1e-5)
    source.close()
    for elsewhere in (Residency("disk"), Residency("split", share=0.5)):
        raw = CachedSource(tiny_cache, points, CPU, residency=elsewhere, pooling=pooling)
        assert all(isinstance(block, torch.Tensor) for batch in raw.batches(requests) for block in batch.blocks)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_rows_that_are_pooled_beside_the_tokens_are_counted(precision, tmp_path, monkeypatch):
    cache = extract(tiny_backbone(), tiny_samples(9), precision=precision, out=tmp_path / "c.zarr")
    asked = []
    monkeypatch.setattr(cached, "choose_residency", lambda *given: asked.append(given) or choose_residency(*given))
    options = {"samples": cache.samples, "passes": 9, "pooling": Pooling(classes=1, prefix=1)}
    source = open_cached(cache, cache.manifest.points, Placement(CPU), **options)
    kept, pooled = source._normed._memory.kept, source._normed._pooled
    ((_, counted),) = asked
    assert counted.pooled == pooled.nbytes > 0
    codes, values = counted.held("memory")
    assert sum(own.nbytes for own in kept) + pooled.nbytes == (codes if values is None else values)
    source.close()
    folded = open_cached(cache, cache.manifest.points, Placement(CPU), rank=4, **options)
    assert asked[1][1].pooled == (0 if precision == "int8" else pooled.nbytes)
    folded.close()


def test_a_cache_of_pooled_rows_is_not_held_twice(tmp_path):
    cache = extract(tiny_backbone(), tiny_samples(9), tokens="pooled", precision="float16", out=tmp_path / "c.zarr")
    options = {"residency": Residency("memory"), "pooling": Pooling(classes=1, prefix=1)}
    source = CachedSource(cache, cache.manifest.points, CPU, **options)
    assert source._normed is None
    requests = requests_in_order(cache.samples, 9)
    (batch,) = source.batches(requests)
    (disk,) = CachedSource(cache, cache.manifest.points, CPU).batches(requests)
    assert all(torch.equal(*pair) for pair in zip(dense(batch.blocks), dense(disk.blocks), strict=True))
    source.close()


def test_a_batch_is_not_overwritten_before_the_next_is_asked_for(tiny_cache):
    requests = [Request(np.random.default_rng(at).permutation(23)[:5]) for at in range(12)]
    points = tapped_points("block", [1, 3, 4])
    for place in PLACES:
        source = CachedSource(tiny_cache, points, CPU, residency=place)
        for batch in source.batches(requests):
            before = [block.clone() for block in batch.blocks]
            time.sleep(0.002)  # what works ahead goes on
            assert all(torch.equal(a, b) for a, b in zip(before, batch.blocks, strict=True))
        source.close()


def test_memory_of_batches_is_never_used_for_anything_else():
    slots, ranges = Buffers(1, (2, 1001), torch.uint8, CPU), []
    for rows in (1, 1, 17, 16, 60, 65):
        slots.grow(rows)
        planes = slots.planes(0, rows)
        assert [plane.shape for plane in planes] == [(rows, 1001)] * 2
        assert all(plane.data_ptr() % 16 == 0 for plane in planes)
        ranges.append({(at.data_ptr(), at.data_ptr() + at.nbytes) for at in planes})
    assert ranges[0] == ranges[1]
    for end, start in pairwise(sorted(set.union(*ranges[1:3], *ranges[4:]))):
        assert end[1] <= start[0]


def test_a_slot_may_be_filled_between_a_step_on_another_and_its_way_back():
    slots = Buffers(2, (1, 4), torch.float32, CPU)
    slots.grow(3)
    (first,), (second,) = slots.planes(0, 3), slots.planes(1, 3)
    first.fill_(2.0)
    weight = torch.ones(3, 4, requires_grad=True)
    loss = (weight * first).sum()
    second.copy_(torch.ones(3, 4))
    loss.backward()
    assert torch.equal(weight.grad, first)


def test_settled_codes_are_the_same_block_outputs_where_they_were_before():
    def batch(rows):
        codes = torch.randint(-128, 128, (3, rows, 5, 8), dtype=torch.int8)
        scales = torch.rand(3, rows, 5).bfloat16()
        return [Codes(c, s, torch.rand(8) + 0.5, torch.bfloat16) for c, s in zip(codes, scales, strict=True)]

    codes, found = FixedCodes(3, 5, 8, torch.bfloat16, CPU), []
    for rows in (6, 4):
        blocks = batch(rows)
        *others, start = codes.write(blocks, 6)
        assert all(isinstance(block, Codes) for block in others)
        assert all(torch.equal(a, b) for a, b in zip(dense([*others, start]), dense(blocks), strict=True))
        assert all(ours.codes is theirs.codes for ours, theirs in zip(others, blocks[:-1], strict=True))
        found.append([*(block.tokens.data_ptr() for block in others), start.data_ptr()])
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_a_run_ends_alike_wherever_its_cache_was_kept(precision, tmp_path):
    cache = extract(tiny_backbone(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr", shard_bytes=9_000)
    ends = {}
    for residency in ("disk", "memory", "auto"):
        run = lc.train(cache, out=tmp_path / residency, residency=residency, **OPTIONS)
        ends[residency] = run.adapter.trained_state()
    for other in ("memory", "auto"):
        assert all(torch.equal(ends["disk"][name], ends[other][name]) for name in ends["disk"])


def test_an_interrupted_run_may_go_on_in_another_place(tiny_cache, tmp_path):
    whole = lc.train(tiny_cache, out=tmp_path / "whole", residency="memory", **OPTIONS)

    def stop(metrics):
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lc.train(tiny_cache, out=tmp_path / "stopped", residency="memory", report=stop, **OPTIONS)
    resumed = lc.resume(tmp_path / "stopped", device="cpu", residency="disk")
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_chosen_is_said(tiny_cache, caplog):
    caplog.set_level("INFO", "losa_cache")
    points = tapped_points("block", [4])
    for passes in (5, 1):
        open_cached(tiny_cache, points, Placement(CPU), samples=tiny_cache.samples, passes=passes).close()
    assert caplog.messages == [
        "14.7 kB are kept in memory.",
        "14.7 kB are read from disk: every sample is read once.",
    ]


def test_a_cpu_that_is_asked_for_its_own_memory_says_that_it_is_the_hosts():
    given = Sizes(stored=1000, decoded=None, device=None, memory=10_000, passes=5)
    assert choose_residency("device", given).reason == "1.0 kB are kept in memory, the training device's own."
    assert choose_residency("memory", given).reason == "1.0 kB are kept in memory."


def test_what_was_loaded_is_said_where_it_is_much(tiny_cache, caplog, monkeypatch):
    caplog.set_level("INFO", "losa_cache")
    monkeypatch.setattr(preload, "WORTH_SAYING", 0)
    CachedSource(tiny_cache, tapped_points("block", [4]), CPU, residency=Residency("split", share=0.5)).close()
    sizes = [re.fullmatch(r"(\d+\.\d) kB were loaded in \d+\.\d s \(\d+\.\d GB/s\)\.", m) for m in caplog.messages]
    assert [found and float(found[1]) for found in sizes] == [7.0, 7.7]  # of 23 samples 11 lie on the device


def test_a_damaged_chunk_is_named_when_it_is_loaded(tiny_cache):
    path = tiny_cache.shard_path(2)
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=f"sample {tiny_cache.ids[10]!r} cannot be read from shard 2"):
        CachedSource(tiny_cache, tapped_points("block", [1, 2, 3, 4]), CPU, residency=Residency("memory"))


@pytest.mark.slow
def test_processes_share_a_cache_without_knowing_of_each_other(tiny_cache, tmp_path):
    lc.train(tiny_cache, out=tmp_path / "alone", **OPTIONS)
    code = "import sys, losa_cache as lc; lc.train(sys.argv[1], out=sys.argv[2], residency=sys.argv[3], " + ", ".join(
        f"{name}={value!r}" for name, value in OPTIONS.items()
    )
    running = [
        Forked("-c", code + ")", tiny_cache.path, tmp_path / str(at), place)
        for at, place in enumerate(["disk", "memory", "disk"])
    ]
    assert [process.wait().returncode for process in running] == [0, 0, 0]
    alone = load_file(tmp_path / "alone" / "adapter/adapter.safetensors")
    for at in range(3):
        theirs = load_file(tmp_path / str(at) / "adapter/adapter.safetensors")
        assert all(torch.equal(alone[name], theirs[name]) for name in alone)
