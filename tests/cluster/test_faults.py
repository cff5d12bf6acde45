"""Real processes that are killed: a worker, and the scheduler. The cache has the bits of one process in the end."""

import time

import pytest

import losa_cache as lc
from tests.cluster.test_extract import content
from tests.forked import Forked

EXTRACT = """
import sys
import losa_cache as lc
given = {"backbone": "vit_digits", "dataset": "digits", "batch_size": 2, "shard_bytes": 250_000}
try:
    lc.extract(**given, out=sys.argv[1], scheduler=sys.argv[2] if len(sys.argv) > 2 else None)
except lc.UserError as error:
    sys.exit(str(error))
"""


class Cluster:
    """A scheduler and workers, each a process in a folder of its own."""

    def __init__(self, folder, workers):
        folder.mkdir()
        quiet = ("--no-dashboard",)
        self.file = folder / "scheduler.json"
        run = ("-m", "distributed.cli.dask_scheduler", "--port", "0", *quiet, "--scheduler-file", self.file)
        self.scheduler = Forked(*run, cwd=folder)
        while not self.file.exists():
            time.sleep(0.05)
        self.address = self.file.read_text().partition('"address": "')[2].partition('"')[0]
        self.workers = []
        for number in range(workers):
            place = folder / f"worker-{number}"
            place.mkdir()
            words = (self.address, "--nthreads", "1", "--no-nanny", *quiet)
            self.workers.append(Forked("-m", "distributed.cli.dask_worker", *words, cwd=place))

    def close(self):
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                process.kill()
                process.wait()


def shards(cache):
    return len([*cache.with_name(cache.name + ".receipts").glob("0*.json")])


def after(cache, count, command):
    """Wait until so many shards are done."""
    while shards(cache) < count:
        assert command.poll() is None, command.wait().stderr
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    home = tmp_path_factory.mktemp("alone")
    done = Forked("-c", EXTRACT, home / "c.zarr").wait()
    assert done.returncode == 0, done.stderr
    return lc.open_cache(home / "c.zarr")


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_scheduler_lose_shards_in_flight_only(alone, tmp_path):
    cluster = Cluster(tmp_path / "first", 2)
    command = Forked("-c", EXTRACT, tmp_path / "c.zarr", cluster.address)
    after(tmp_path / "c.zarr", 5, command)
    cluster.workers[0].kill()
    cluster.workers[0].wait()  # until then it is a zombie, which has its locks
    after(tmp_path / "c.zarr", shards(tmp_path / "c.zarr") + 5, command)
    cluster.scheduler.kill()
    command.wait()
    assert command.returncode == 1
    assert "was lost" in command.stderr
    assert "Traceback" not in command.stderr
    cluster.close()
    done = shards(tmp_path / "c.zarr")
    assert 10 <= done < alone.layout.shards
    cluster = Cluster(tmp_path / "second", 2)
    command = Forked("-c", EXTRACT, tmp_path / "c.zarr", cluster.address)
    after(tmp_path / "c.zarr", done + 5, command)
    cluster.workers[1].kill()
    cluster.workers[1].wait()
    command.wait()
    cluster.close()
    assert command.returncode == 0, command.stderr
    assert "was lost" in command.stderr
    assert content(tmp_path / "c.zarr") == content(alone.path)
