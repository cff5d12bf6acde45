"""Where block outputs are kept changes nothing but time."""

import subprocess
import sys

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
from losa_cache.points import tapped_points
from losa_cache.sidenet.operand import dense
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource, open_cached
from losa_cache.train.residency import DEVICE_SHARE, MEMORY_SHARE, Residency, Room, choose_residency
from tests.conftest import tiny_backbone, tiny_samples

CPU = torch.device("cpu")
OPTIONS = {"rank": 4, "epochs": 3, "lr": 0.01, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}
PLACES = [
    Residency("disk"),
    Residency("disk", direct=True),
    Residency("memory"),
    Residency("memory", decoded=True),
    Residency("device"),
]
GB = 10**9


def room(**changed) -> Room:
    return Room(**({"stored": 2 * GB, "decoded": None, "device": None, "memory": 10 * GB, "passes": 9} | changed))


@pytest.mark.parametrize(
    ("asked", "have", "where"),
    [
        ("auto", room(), "memory"),
        ("auto", room(device=20 * GB), "device"),
        ("auto", room(device=2 * GB), "memory"),
        ("auto", room(device=2 * GB, memory=3 * GB), "disk"),
        ("auto", room(device=20 * GB, passes=1), "disk"),
        ("device", room(), "memory"),  # the CPU's own
        ("memory", room(device=20 * GB, passes=1), "memory"),
        ("disk", room(device=20 * GB), "disk"),
    ],
)
def test_auto_is_the_fastest_place_that_fits(asked, have, where):
    found = choose_residency(asked, have)
    assert found.where == where
    assert found.reason.endswith(".")


def test_values_are_kept_in_place_of_codes_where_they_fit():
    assert choose_residency("auto", room(decoded=5 * GB)).decoded
    assert not choose_residency("auto", room(decoded=9 * GB)).decoded
    assert not choose_residency("auto", room(decoded=None)).decoded


def test_the_page_cache_is_passed_by_only_where_it_cannot_hold_what_is_read():
    assert choose_residency("auto", room(stored=11 * GB)).direct
    assert not choose_residency("auto", room(stored=9 * GB)).direct
    assert not choose_residency("auto", room(stored=11 * GB, remote=True)).direct


@given(
    st.sampled_from(["auto", "device", "memory", "disk"]),
    st.builds(
        Room,
        stored=st.integers(1, 100),
        decoded=st.none() | st.integers(1, 400),
        device=st.none() | st.integers(0, 100),
        memory=st.integers(0, 100),
        passes=st.integers(1, 3),
    ),
)
def test_nothing_is_kept_where_it_does_not_fit(asked, have):
    try:
        found = choose_residency(asked, have)
    except UserError:
        assert asked in {"device", "memory"}
        return
    kept = have.decoded if found.decoded else have.stored
    if found.where == "device":
        assert kept <= DEVICE_SHARE * have.device
    if found.where == "memory":
        assert kept <= MEMORY_SHARE * have.memory


@pytest.mark.parametrize("asked", ["device", "memory"])
def test_a_place_that_is_too_small_is_refused_in_a_sentence(asked):
    with pytest.raises(
        UserError, match=r"--residency \w+ would keep 2\.0 GB, and may take .* kB: choose fewer --layers"
    ):
        choose_residency(asked, room(memory=10**6, device=10**6))
    with pytest.raises(UserError, match="unknown residency 'ram': choose one of auto, device, memory, disk"):
        choose_residency("ram", room())


@pytest.mark.parametrize("worth", [0, 2], ids=["plain", "compressed"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4", "predict:2"])
def test_every_place_gives_the_same_batches(precision, worth, tmp_path, monkeypatch):
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
        open_cached(tiny_cache, points, CPU, samples=tiny_cache.samples, passes=passes).close()
    assert caplog.messages == [
        "14.7 kB are kept in memory.",
        "14.7 kB are read from disk: every sample is read once.",
    ]


def test_a_damaged_chunk_is_named_when_it_is_loaded(tiny_cache):
    path = tiny_cache.shard_path(2)
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=f"sample {tiny_cache.ids[10]!r} cannot be read from shard 2"):
        CachedSource(tiny_cache, tapped_points("block", [1, 2, 3, 4]), CPU, residency=Residency("memory"))


def test_processes_share_a_cache_without_knowing_of_each_other(tiny_cache, tmp_path):
    lc.train(tiny_cache, out=tmp_path / "alone", **OPTIONS)
    code = "import sys, losa_cache as lc; lc.train(sys.argv[1], out=sys.argv[2], residency=sys.argv[3], " + ", ".join(
        f"{name}={value!r}" for name, value in OPTIONS.items()
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code + ")", str(tiny_cache.path), str(tmp_path / str(at)), place])
        for at, place in enumerate(["disk", "memory", "disk"])
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    alone = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    for at in range(3):
        theirs = load_file(tmp_path / str(at) / "adapter_model.safetensors")
        assert all(torch.equal(alone[name], theirs[name]) for name in alone)
