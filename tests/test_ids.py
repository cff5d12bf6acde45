"""Ids in one piece of bytes, against the list of strings that they stand for; and what a sample takes in memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zarr

from losa_cache import ids as packed
from losa_cache.cache.build import build_metadata
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.ids import Ids
from losa_cache.train.sampler import epoch_requests, hold_out

NAMES = ["a", "", "Ärger/ü.png", b"caf\xe9".decode("utf-8", "surrogateescape"), "日本/犬.jpg", "x" * 90, "a"]
BYTES_A_SAMPLE = 100  # of ids of 27 letters, labels and the order of an epoch


@pytest.mark.parametrize("at_once", [2, 2**12])
def test_ids_are_the_list_that_they_stand_for(at_once, monkeypatch):
    monkeypatch.setattr(packed, "AT_ONCE", at_once)
    ids = Ids.of(iter(NAMES))
    assert list(ids) == NAMES
    assert [ids[place] for place in range(-7, 7)] == [NAMES[place] for place in range(-7, 7)]
    assert ids == NAMES
    assert ids == tuple(NAMES)
    assert ids != NAMES[:-1]
    assert ids != [*NAMES[:-1], "b"]
    assert list(ids[1:6:2]) == NAMES[1:6:2]
    assert list(ids[::-1].take(np.array([5, 0, 0]))) == [NAMES[1], NAMES[6], NAMES[6]]
    assert list(ids[:2].repeat(3)) == ["a", "a", "a", "", "", ""]
    assert Ids.of(ids) is ids
    assert list(Ids.of([])) == []
    with pytest.raises(IndexError):
        ids[7]


@pytest.mark.parametrize("at_once", [2, 2**12])
def test_their_rows_are_those_of_older_caches(at_once, monkeypatch):
    monkeypatch.setattr(packed, "AT_ONCE", at_once)
    encoded = [name.encode("utf-8", "surrogateescape") for name in NAMES]
    rows = np.frombuffer(b"".join(own.ljust(90, b"\0") for own in encoded), np.uint8).reshape(-1, 90)
    assert np.array_equal(Ids.of(NAMES).packed, rows)
    assert Ids.unpacked(rows) == NAMES
    assert Ids.unpacked(rows).take(np.array([4, 2])) == [NAMES[4], NAMES[2]]


@pytest.mark.parametrize("names", [[], [""], ["", ""], ["", "a"]])
def test_empty_ones_are_written_and_read_again(names):
    assert Ids.of(names).packed.shape == (len(names), 1)
    assert list(Ids.unpacked(Ids.of(names).packed)) == names
    assert list(Ids.unpacked(np.zeros((len(names), 0), np.uint8))) == [""] * len(names)  # as older versions wrote it


@pytest.mark.parametrize("name", ["a\ud800", "\udcc3\udca4"])  # the second escapes two bytes, which are one letter
def test_what_would_not_come_back_is_refused(name):
    with pytest.raises(UserError, match="has a lone surrogate, which is no letter: give ids that are text"):
        Ids.of(["b", name])


def test_a_sample_takes_no_more_than_a_hundred_bytes(tiny_cache, tmp_path):
    few, many = 5_000, 25_000
    paths = [described(tiny_cache, tmp_path / f"{rows}.zarr", rows) for rows in (few, many)]
    less, more = (peak_of(opened_and_ordered, path) for path in paths)
    assert (more - less) / (many - few) <= BYTES_A_SAMPLE


def described(cache, path, rows):
    """Write the metadata files of a cache of so many rows; nobody reads its shards."""
    build_metadata(
        path,
        replace(cache.manifest, complete=False, skipped=[]),
        replace(cache.layout, samples=rows),
        labels=np.arange(rows) % len(cache.manifest.classes),
        ids=[f"class{number % 7:04d}/image-{number:08d}.jpg" for number in range(rows)],
        tail=cache.tail_tensors(),
        scales=cache.encoding().constants(),
    )
    return path


def opened_and_ordered(path):
    cache = open_cache(path, incomplete=True)
    train, held = hold_out(cache.samples, cache.sample_ids, 0.1)
    requests = epoch_requests(train, batch_size=64, seed=0, epoch=0)
    assert len(cache.ids) == len(train) + len(held) == zarr.open_array(path / "labels").shape[0]
    return cache, train, held, requests


def peak_of(work, path):
    work(path)  # what is loaded and kept once
    tracemalloc.start()
    try:
        work(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
