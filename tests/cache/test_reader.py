"""Rows of many shards, with few descriptors: as from one shard, and nothing is learned twice."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.cache import byte_source, reader
from losa_cache.cache.byte_source import FileBytes
from losa_cache.cache.descriptors import Descriptors, ReadFile
from losa_cache.cache.layout import Layout
from losa_cache.cache.places import MISSING, Places
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.runs import cut_out, join
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from tests.conftest import tiny_backbone, tiny_samples
from tests.forked import Forked

COUNT, FEW = 41, 3
OPTIONS = {"precision": "float32", "on_error": "skip"}


def made(folder, shard_bytes, **options):
    samples = tiny_samples(COUNT, bad=(5, 17))
    return extract(tiny_backbone(), samples, out=folder, shard_bytes=shard_bytes, **(OPTIONS | options))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The same samples in one shard, and in one for each."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        return made(folder / "one.zarr", 10**8), made(folder / "many.zarr", 2_700)


def targets(cache, count):
    return [torch.empty(count, cache.layout.tokens, cache.layout.columns) for _ in cache.manifest.points]


def epochs(cache, count, *, batch=8, **options):
    """What random batches of all points give in so many epochs; rows of one shard are read together in large ones."""
    own = BlockReader(cache, cache.manifest.points, **options)
    for epoch in range(count):
        order, found = np.random.default_rng(epoch).permutation(cache.samples), []
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            filled = targets(cache, len(rows))
            own.read(rows, filled)
            found.append(torch.stack(filled, 1))
        yield torch.cat(found)
    own.close()


@pytest.fixture
def counted(monkeypatch):
    """Few descriptors; how often files are opened, how many are open at most, and what is read of each."""
    pool, counts = Descriptors(FEW), Counter()
    opening, reading = ReadFile.open, FileBytes.read

    def open_(self):
        opening(self)
        counts["opens"] += 1
        counts["most"] = max(counts["most"], sum("/many.zarr/" in path for path in open_files()))

    def read(self, ranges):
        for offset, length, _ in ranges:
            counts["bytes"] += length
            counts["indices"] += offset + length == self.size
        reading(self, ranges)

    monkeypatch.setattr(byte_source, "descriptors", lambda: pool)
    monkeypatch.setattr(ReadFile, "open", open_)
    monkeypatch.setattr(FileBytes, "read", read)
    return counts


def open_files():
    for handle in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{handle}")
        except OSError:  # closed meanwhile
            continue


def test_an_index_is_read_once_however_often_its_shard_is_opened_again(caches, counted):
    one, many = caches
    assert (one.layout.shards, many.layout.shards) == (1, COUNT)
    expected = list(epochs(one, 3, batch=COUNT))
    assert all(torch.equal(*pair) for pair in zip(epochs(one, 3), expected, strict=True))
    counted.clear()
    rows = len(many.samples)
    for epoch, found in enumerate(epochs(many, 3, threads=2)):
        assert torch.equal(found, expected[epoch])
        assert counted["indices"] == (rows if epoch == 0 else 0)
        if epoch:  # the rows with their checksums, and no more
            assert counted["bytes"] == rows * many.layout.sample_bytes
            assert rows - FEW <= counted["opens"] <= 2 * rows  # to read ahead and to read
        assert counted["most"] <= FEW + 2
        counted.clear()


def test_what_is_known_of_shards_is_forgotten_where_memory_is_short(caches, counted, monkeypatch):
    one, many = caches
    expected = list(epochs(one, 2))
    monkeypatch.setattr(reader, "KEPT_BYTES", 50)
    counted.clear()
    assert all(torch.equal(*pair) for pair in zip(epochs(many, 2), expected, strict=True))
    assert counted["indices"] > len(many.samples)


@pytest.mark.parametrize("whole", [True, False])
def test_a_shard_that_is_replaced_while_it_is_closed_is_read_and_checked_anew(tmp_path, counted, whole):
    cache = made(tmp_path / "many.zarr", 2_700)
    rows = cache.samples
    own, found = BlockReader(cache, cache.manifest.points), targets(cache, len(rows))
    own.read(rows, found)
    before = [plane.clone() for plane in found]
    path = cache.shard_path(int(rows[2]))
    content = bytearray(path.read_bytes())
    content[100] ^= 0 if whole else 1
    (tmp_path / "repaired").write_bytes(content)
    os.replace(tmp_path / "repaired", path)
    if not whole:
        with pytest.raises(UserError, match=f"sample {cache.ids[rows[2]]!r} cannot be read from shard {rows[2]}"):
            own.read(rows, found)
        return
    own.read(rows, found)
    assert all(torch.equal(*pair) for pair in zip(before, found, strict=True))


def test_one_damaged_row_among_many_that_are_read_together_is_named(tmp_path):
    cache = made(tmp_path / "one.zarr", 10**8)
    path = cache.shard_path(0)
    good = path.read_bytes()
    index = np.frombuffer(good[-cache.layout.index_bytes : -4], "<u8").reshape(-1, 2)
    for at, row in enumerate(cache.samples[::4].tolist()):
        content = bytearray(good)
        content[int(index[row, 0]) + at * 250] ^= 1 << at % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"sample {cache.ids[row]!r} cannot be read from shard 0 .*checksum"):
            next(epochs(cache, 1, batch=COUNT))


def test_samples_that_changed_places_within_a_shard_are_found_when_they_are_read_together(tmp_path):
    cache = made(tmp_path / "one.zarr", 10**8)
    path, size = cache.shard_path(0), cache.layout.sample_bytes
    good = path.read_bytes()
    path.write_bytes(good[size : 2 * size] + good[:size] + good[2 * size :])
    with pytest.raises(UserError, match=rf"sample {cache.ids[cache.samples[0]]!r} cannot be read .*of another place"):
        next(epochs(cache, 1, batch=COUNT))


@given(st.data())
def test_places_are_those_of_the_index(data):
    samples, chunks, there = (data.draw(st.integers(1, 6)) for _ in range(3))
    layout = Layout(samples, chunks, 2, 5, 2, chunk_layers=1, shard_samples=samples)
    index = np.full((samples, chunks, 2), MISSING, dtype="<u8")
    lengths = np.full((min(there, samples), chunks), layout.stored_chunk_bytes, dtype=np.uint64)
    index[: len(lengths), :, 1] = lengths
    index[: len(lengths), :, 0] = (np.cumsum(lengths) - lengths.reshape(-1)).reshape(lengths.shape)
    change = st.tuples(st.integers(0, index.size - 1), st.sampled_from([0, 3, MISSING]))
    changed = data.draw(st.lists(change, max_size=2))
    for at, value in changed:
        index.reshape(-1)[at] = value
    places = Places(index, layout)
    assert np.array_equal(places.index, index)
    assert [[places.of(s, c) for c in range(chunks)] for s in range(samples)] == [
        [tuple(entry) for entry in sample] for sample in index.tolist()
    ]
    assert np.array_equal(np.stack(places.of_samples(np.arange(samples)), 1), index[:, 0])
    assert changed or places.nbytes == 0


@given(st.lists(st.integers(0, 60_000), min_size=1, max_size=30), st.integers(1, 300))
def test_runs_hold_each_piece_and_no_long_gap(starts, length):
    file = np.random.default_rng(0).integers(0, 256, 61_000, dtype=np.uint8)
    starts = np.sort(np.array(starts))
    runs = join(starts, length)
    memory = np.concatenate([file[a:b] for a, b in zip(runs.begins, runs.ends, strict=True)])
    assert len(memory) == runs.nbytes
    assert np.array_equal(cut_out(memory, runs.at, length), np.stack([file[at : at + length] for at in starts]))
    covered = np.zeros(len(file), dtype=bool)
    for start in starts:
        covered[start : start + length] = True
    assert runs.nbytes - covered.sum() <= 4096 * (len(starts) - len(runs.begins))
    assert (runs.begins[1:] - runs.ends[:-1] > 4096).all()


LIFE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import sys
from pathlib import Path
import losa_cache as lc
from tests.conftest import tiny_backbone, tiny_samples
from tests.forked import Forked
cache = lc.extract(tiny_backbone(), tiny_samples(150), precision="float32", out=Path("c.zarr"), shard_bytes=2_700)
assert cache.layout.shards == 150
run = lc.train(cache, out="run", epochs=2, rank=2, batch_size=16, val_fraction=0.2, residency="disk", device="cpu")
print(abs(run.metrics["val_loss"] - lc.evaluate_run("run", device="cpu")["loss"]) < 1e-5)
"""


@pytest.mark.slow
def test_a_whole_life_with_64_descriptors(tmp_path):
    done = Forked("-c", LIFE, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"


def test_the_limit_is_raised_where_the_system_permits():
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 512)); from losa_cache.cache.descriptors import *"
    code += "; descriptors(); print(r.getrlimit(r.RLIMIT_NOFILE))"
    done = Forked("-c", code).wait()
    assert done.stdout.strip() == "(512, 512)", done.stderr
