"""An extraction on a cluster against the same extraction by one process."""

import os
import shutil

import pytest

import losa_cache as lc
from losa_cache.cluster import connect
from losa_cache.errors import UserError
from losa_cache.extract import at_worker
from losa_cache.extract.meter import Meter
from losa_cache.extract.on_cluster import divide

GIVEN = {"backbone": "vit_digits", "dataset": "digits", "split": "test", "limit": 60, "batch_size": 8}
SMALL = 400_000  # bytes of a shard


def content(path):
    """The bytes of every file of a cache that holds no time."""
    files = [file for folder in (path / "activations", path.with_name(path.name + ".receipts")) for file in folder.rglob("*")]
    return {os.path.relpath(file, path): file.read_bytes() for file in files if file.is_file() and "claims" not in file.parts}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes."""
    return lc.extract(**GIVEN, out=tmp_path_factory.mktemp("alone") / "c.zarr", shard_bytes=SMALL)


def test_a_cluster_writes_the_bits_of_one_process(alone, tmp_path, scheduler):
    meter = Meter()
    cache = lc.extract(**GIVEN, out=tmp_path / "c.zarr", shard_bytes=SMALL, scheduler=scheduler, meter=meter)
    assert cache.layout.shards > 4
    assert content(cache.path) == content(alone.path)
    assert (cache.manifest.identity, cache.layout) == (alone.manifest.identity, alone.layout)
    assert meter.images == meter.total == 60
    lc.extract(**GIVEN, out=tmp_path / "c.zarr", shard_bytes=SMALL)  # no worker has its lock any more
