"""Several processes extract one cache: real ones, forked from one that has imported everything."""

import json

import pytest

from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.part import Part, array_task
from losa_cache.extract.units import Units
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked

IMAGES = 90
OPTIONS = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4, "workers": 1}  # 30 shards of 3 rows, 8 units

# Forks a process for each part; each prints a line of JSON.
NURSERY = """
import json, os, signal, sys, time
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.cache import claims
from losa_cache.extract import share
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.errors import UserError

out, options, images = {out!r}, {options!r}, {images}
share.PAUSE = claims.PAUSE = 0.02

class Counting(Meter):
    pause = 0.0
    def update(self):
        super().update()
        time.sleep(self.pause)

def child(part, before=lambda meter: None, **own):
    if pid := os.fork():
        return pid
    meter = Counting()
    try:
        before(meter)
        cache = extract(tiny_backbone(), tiny_samples(images), out=out, part=part, meter=meter, **options | own)
        end = {{"complete": cache.manifest.complete}}
    except UserError as error:
        end = {{"error": str(error)}}
    print(json.dumps(end | {{"part": part, "images": meter.images, "elsewhere": meter.elsewhere}}), flush=True)
    os._exit(0)

def wait(*pids):
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0 or os.WIFSIGNALED(status), status

def receipts():
    try:
        return [name for name in os.listdir(out + ".receipts") if name.endswith(".json")]
    except FileNotFoundError:
        return []

"""


def run(code, out, images=IMAGES, **options):
    """Run code behind the nursery's and give the lines of all its processes."""
    done = Forked("-c", NURSERY.format(out=str(out), options=OPTIONS | options, images=images) + code).wait()
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process writes."""
    return extract(tiny_backbone(), tiny_samples(IMAGES), out=tmp_path_factory.mktemp("whole") / "c.zarr", **OPTIONS)


def require_same(out, whole):
    """The cache and its receipts are, file for file, those of one process; claims and temporary files are gone."""
    assert contents(out) == contents(whole.path)
    assert contents(open_cache(out).receipts) == contents(whole.receipts)


def test_processes_that_take_what_is_free_write_what_one_would(tmp_path, whole):
    ends, _ = run("wait(*[child('auto') for _ in range(4)])", tmp_path / "c.zarr")
    assert [end["complete"] for end in ends] == [True] * 4
    assert sum(end["images"] for end in ends) == IMAGES  # no row was written twice
    require_same(tmp_path / "c.zarr", whole)


def test_fixed_parts_in_any_order_write_what_one_would(tmp_path, whole):
    ends, _ = run("for part in ('3/3', '1/3', '2/3'): wait(child(part))", tmp_path / "c.zarr")
    assert [end["complete"] for end in ends] == [False, False, True]
    units = Units(whole.layout, 4)
    for end in ends:
        part = Part.parse(end["part"])
        shards = [shard for unit in range(len(units)) if part.takes(unit) for shard in units.shards(unit)]
        assert end["images"] == sum(len(whole.layout.rows(shard)) for shard in shards)
    require_same(tmp_path / "c.zarr", whole)
