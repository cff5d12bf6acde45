"""Several processes extract one cache: real ones, forked from one that has imported everything."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.cache.layout import plan_layout
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.part import Part, array_task
from losa_cache.extract.units import Units
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked

IMAGES = 90
OPTIONS = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4, "workers": 1}  # 30 shards of 3 rows, 8 units

# Forks a process for each part; each prints a line of JSON.
NURSERY = """
import glob, json, os, signal, sys, time
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.cache import members
from losa_cache.extract import share
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.errors import UserError

out, options, images = {out!r}, {options!r}, {images}
share.PAUSE = members.PAUSE = 0.02
share.LOOK = 0.0  # others are looked at before every unit

class Counting(Meter):
    pause, party = 0.0, 0
    def start(self, total):
        super().start(total)
        os.makedirs(out + ".party", exist_ok=True)
        open(out + ".party/" + str(os.getpid()), "w").close()
        while len(os.listdir(out + ".party")) < self.party:
            time.sleep(0.005)
    def update(self):
        super().update()
        time.sleep(self.pause)

def slow(party=0):
    # Takes time for a batch, and begins when so many processes have come.
    def before(meter):
        meter.pause, meter.party = 0.03, party
    return before

def child(part, before=lambda meter: None, **own):
    if pid := os.fork():
        return pid
    meter = Counting()
    try:
        before(meter)
        own = {{"backbone": tiny_backbone(), "dataset": tiny_samples(images)}} | options | own
        cache = extract(out=out, part=part, meter=meter, **own)
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
    """Run code behind the nursery's; give the ends of all its processes, and what they logged."""
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


def images_of(part, layout):
    """How many images a part has."""
    part, units = Part.parse(part), Units(layout, OPTIONS["batch_size"])
    shards = [shard for unit in range(len(units)) if part.takes(unit) for shard in units.shards(unit)]
    return sum(len(layout.rows(shard)) for shard in shards)


def test_processes_that_take_what_is_free_write_what_one_would(tmp_path, whole):
    ends, _ = run("wait(*[child('auto', slow(4)) for _ in range(4)])", tmp_path / "c.zarr")
    assert [end["complete"] for end in ends] == [True] * 4
    assert sum(end["images"] for end in ends) == IMAGES  # no row was written twice
    assert sum(end["images"] > 0 for end in ends) > 1
    require_same(tmp_path / "c.zarr", whole)


@pytest.mark.slow
def test_fixed_parts_in_any_order_write_what_one_would(tmp_path, whole):
    ends, _ = run("for part in ('3/3', '1/3', '2/3'): wait(child(part))", tmp_path / "c.zarr")
    assert [(end["complete"], end["images"]) for end in ends] == [
        (part == "2/3", images_of(part, whole.layout)) for part in ("3/3", "1/3", "2/3")
    ]
    require_same(tmp_path / "c.zarr", whole)


ROADS = {
    "bfloat16": {"precision": "bfloat16"},
    "predict": {"precision": "predict:1"},
    "views and failures": {"views": 2, "augment": "crop", "on_error": "skip"},
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.slow
def test_every_kind_comes_out_the_same(road, tmp_path):
    options = OPTIONS | {"shard_bytes": 7_000} | ROADS[road]
    bad = (4, 20) if "on_error" in options else ()
    code = (
        f"samples = tiny_samples(images, bad={bad})\nwait(*[child('auto', slow(3), dataset=samples) for _ in range(3)])"
    )
    ends, _ = run(code, tmp_path / "c.zarr", **options)
    whole = extract(tiny_backbone(), tiny_samples(IMAGES, bad=bad), out=tmp_path / "whole.zarr", **options)
    assert [end["complete"] for end in ends] == [True] * 3
    assert sum(end["images"] for end in ends) == IMAGES * options.get("views", 1)
    assert len(whole.manifest.skipped) == len(bad) * options.get("views", 1)
    require_same(tmp_path / "c.zarr", whole)


@pytest.mark.slow
def test_what_one_process_began_many_finish_and_the_other_way_round(tmp_path, whole):
    first, second = tmp_path / "first.zarr", tmp_path / "second.zarr"
    begin = """
pid = child({part!r}, slow())
while len(receipts()) < 4: time.sleep(0.002)
os.kill(pid, signal.SIGKILL)
wait(pid)
"""
    ends, _ = run(begin.format(part=None) + "wait(child('auto'), child('auto'))", first)
    assert sum(end["images"] for end in ends) <= IMAGES - 3 * 4
    ends, _ = run(begin.format(part="auto") + "wait(child(None))", second)
    assert [end["images"] for end in ends] <= [IMAGES - 3 * 4]
    require_same(first, whole)
    require_same(second, whole)


def test_alone_and_together_keep_out_of_each_others_way(tmp_path):
    refused = """
pid = child({first!r}, slow())
while not receipts(): time.sleep(0.002)
wait(child({second!r}))
os.kill(pid, signal.SIGKILL)
wait(pid)
"""
    for first, second, others in (("auto", None, ""), (None, "1/2", "without --part ")):
        ends, _ = run(refused.format(first=first, second=second), tmp_path / f"{second is None}.zarr")
        assert f"another process {others}is writing the cache" in ends[0]["error"]
        assert "--part auto" in ends[0]["error"]


def test_another_backbone_and_another_batch_are_refused_and_the_rest_finishes(tmp_path, whole):
    code = """
first = child('auto', slow())
while not receipts(): time.sleep(0.002)
os.kill(first, signal.SIGSTOP)
wait(child('auto', backbone=tiny_backbone(1)), child('2/2', batch_size=8))
os.kill(first, signal.SIGCONT)
wait(first)
"""
    ends, _ = run(code, tmp_path / "c.zarr")
    weights, batch, done = sorted(ends, key=lambda end: ("complete" in end, "agreed on" in end.get("error", "")))
    assert "holds another cache: it differs in backbone" in weights["error"]
    assert "batch-size is 8, and the processes that extract" in batch["error"]
    assert (done["complete"], done["images"]) == (True, IMAGES)
    require_same(tmp_path / "c.zarr", whole)


@pytest.mark.parametrize(
    ("text", "part"),
    [("auto", Part(free=True)), ("1/1", Part(1, 1)), ("16/16", Part(16, 16)), ("3/16", Part(3, 16))],
)
def test_parts_are_read(text, part):
    assert Part.parse(text) == part


@pytest.mark.parametrize("text", ["", "all", "0/4", "5/4", "1/", "/2", "-1/2", "1/2/3", "1.5/2", "\u0661/2x"])
def test_what_is_no_part_is_one_sentence(text, tmp_path):
    said = "there is no part" if text in ("0/4", "5/4") else "it must be auto, or .* such as 3/16"
    with pytest.raises(UserError, match=f"part is .*: .*{said}"):
        extract(tiny_backbone(), tiny_samples(3), out=tmp_path / "c.zarr", part=text)


@pytest.mark.parametrize(
    ("environment", "task"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"LSB_JOBINDEX": "0"}, None),  # of a job that is no array
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "16"}, "task 0 of a SLURM array of 16"),
        ({"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "8"}, "element 3 of an LSF job array"),
    ],
)
def test_job_arrays_are_noticed(environment, task):
    assert array_task(environment) == task


def test_tasks_of_an_array_share_the_cache_without_an_option(tmp_path, whole):
    code = """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
os.environ["SLURM_ARRAY_TASK_ID"] = "1"
wait(child(None, slow(2)), child(None, slow(2)))
"""
    ends, log = run(code, tmp_path / "c.zarr")
    assert log.count("this is task 1 of a SLURM array: it shares the cache with the other tasks") == 2
    assert sum(end["images"] for end in ends) == IMAGES
    require_same(tmp_path / "c.zarr", whole)


@given(st.integers(1, 3000), st.integers(1, 5000), st.integers(1, 64), st.integers(1, 200))
def test_units_are_whole_shards_and_whole_batches(samples, shard_bytes, batch, columns):
    sizes = {"samples": samples, "layers": 1, "tokens": 1, "columns": columns, "itemsize": 1}
    fitting = plan_layout(**sizes, shard_bytes=shard_bytes).shard_samples
    layout = plan_layout(**sizes, shard_bytes=shard_bytes, batch=batch)
    units = Units(layout, batch)
    shards = [units.shards(unit) for unit in range(len(units))]
    assert [shard for own in shards for shard in own] == list(range(layout.shards))
    assert all(layout.rows(own[0]).start % batch == 0 for own in shards)
    assert len({len(own) for own in shards[:-1]} | {units.length}) == 1
    assert units.length <= batch  # no unit is longer than it must be, however odd the numbers are
    assert fitting - fitting // 8 <= layout.shard_samples <= fitting
