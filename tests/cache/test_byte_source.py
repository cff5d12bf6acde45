"""Bytes at any offset, against a plain read of the whole file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.cache.bandwidth import REQUEST, disk_bandwidth, memory_bandwidth
from losa_cache.cache.byte_source import MOST_BUFFERS, CutShortError, DirectBytes, FileBytes, merged

SIZE = 40_000


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "bytes"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8).tobytes())
    return path


def pieces(lengths):
    return [np.empty(length, dtype=np.uint8) for length in lengths]


@given(st.lists(st.tuples(st.integers(0, SIZE), st.lists(st.integers(1, 9_000), min_size=1, max_size=4)), max_size=5))
@pytest.mark.parametrize("kind", [FileBytes, DirectBytes])
def test_ranges_are_the_files_own_bytes(kind, file, wanted):
    whole = file.read_bytes()
    ranges = [(offset, sum(lengths), pieces(lengths)) for offset, lengths in wanted]
    source = kind(file)
    assert source.size == SIZE
    if any(offset + length > SIZE for offset, length, _ in ranges):
        with pytest.raises(CutShortError):
            source.read(ranges)
        return
    source.read(ranges)
    for offset, length, buffers in ranges:
        assert b"".join(buffer.tobytes() for buffer in buffers) == whole[offset : offset + length]


def test_neighbours_are_one_read_and_strangers_are_not():
    a, b, c, d = (pieces([n]) for n in (5, 7, 1, 3))
    found = list(merged([(10, 5, a), (15, 7, b), (23, 1, c), (24, 3, d)]))
    assert [(offset, length, len(buffers)) for offset, length, buffers in found] == [(10, 12, 2), (23, 4, 2)]
    assert len(a) == len(c) == 1  # what was asked for is not changed


def test_no_more_buffers_are_joined_than_the_system_takes(file):
    ranges = [(at, 1, pieces([1])) for at in range(3 * MOST_BUFFERS)]
    FileBytes(file).read(ranges)
    assert b"".join(buffers[0].tobytes() for _, _, buffers in ranges) == file.read_bytes()[: 3 * MOST_BUFFERS]


def test_bandwidths_are_measured_where_there_is_something_to_measure(file, tmp_path):
    assert memory_bandwidth() > 0
    assert disk_bandwidth(file) is None  # smaller than a request
    (tmp_path / "large").write_bytes(bytes(2 * REQUEST))
    speed = disk_bandwidth(tmp_path / "large")
    assert speed is None or speed > 0  # None: a file system without direct reads


def test_a_system_that_neither_reads_ahead_nor_directly_still_reads(file, monkeypatch):
    code = """
import os, sys
del os.posix_fadvise, os.O_DIRECT
import numpy as np
from pathlib import Path
from losa_cache.cache.byte_source import DirectBytes, FileBytes
for kind in FileBytes, DirectBytes:
    source, buffer = kind(Path(sys.argv[1])), np.empty(9_000, dtype=np.uint8)
    source.expect([(123, 9_000)])
    source.read([(123, 9_000, [buffer])])
    sys.stdout.buffer.write(buffer.tobytes())
"""
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, check=True, cwd=root)
    assert done.stdout == 2 * file.read_bytes()[123:9_123]
    monkeypatch.delattr(os, "O_DIRECT")
    assert disk_bandwidth(file) is None
