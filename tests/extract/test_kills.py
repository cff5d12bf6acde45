"""SIGKILL at any step: real extractions, killed dozens of times, end as if nothing had happened."""

import json

import pytest

from losa_cache.cache.store import open_cache
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked

OPTIONS = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4, "workers": 1}
KILLS, IMAGES, SHARDS = 12, 90, 30

# Forks an extraction after the other and kills each at one of its steps, so many behind its start: steps on the file
# system (opening, renaming, removing, making folders) that Python itself reports, or rows that are appended to a shard.
NURSERY = """
import glob, json, os, random, signal, sys
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.cache.shard import ShardWriter
from losa_cache.extract.extract import extract

FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile")

def child(out, at=None):
    pid = os.fork()
    if pid:
        return pid
    count = 0
    def step():
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
    append = ShardWriter.append
    def appended(*arguments):
        append(*arguments)
        step()
    if {steps!r} == "rows":
        ShardWriter.append = appended
    else:
        sys.addaudithook(lambda event, values: event in FILES and {out!r} in str(values[0]) and step())
    try:
        extract(tiny_backbone(), tiny_samples({images}), out=out, **{options!r})
        with open({out!r} + ".steps", "w") as file:
            file.write(str(count))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(3)

def receipts():
    try:
        return sorted(name for name in os.listdir({out!r} + ".receipts") if name.endswith(".json"))
    except FileNotFoundError:
        return []

pick = random.Random({seed})
_, status = os.waitpid(child({out!r} + "-first"), 0)
assert status == 0
whole = int(open({out!r} + ".steps").read())
log = []
while sum(entry["killed"] for entry in log) < {kills}:
    before = receipts()
    _, status = os.waitpid(child({out!r}, pick.randrange(1, whole)), 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    in_flight = len(glob.glob({out!r} + "/activations/block/*.partial"))
    log.append(
        {{"killed": os.WIFSIGNALED(status), "before": before, "after": receipts(), "in_flight": in_flight}}
    )
    if status == 0:  # it came through: begin again, to be killed in all places
        os.system("rm -rf " + {out!r} + " " + {out!r} + ".receipts")
        log[-1]["after"] = []
_, status = os.waitpid(child({out!r}), 0)
assert status == 0
print(json.dumps(log))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "seed"), [("rows", 0), ("files", 0), ("files", 1)])
def test_killed_again_and_again_the_cache_ends_bit_identical(tmp_path, steps, seed):
    out = tmp_path / "k.zarr"
    code = NURSERY.format(out=str(out), options=OPTIONS, images=IMAGES, seed=seed, kills=KILLS, steps=steps)
    done = Forked("-c", code).wait()
    assert done.returncode == 0, done.stderr
    log = json.loads(done.stdout)
    assert sum(entry["killed"] for entry in log) == KILLS
    for entry in log:  # a finished shard stays finished
        assert set(entry["before"]) <= set(entry["after"]) or not entry["killed"]
    between = sum(entry["killed"] and 0 < len(entry["after"]) < SHARDS for entry in log)
    assert between, "no kill fell between the first shard and the last"
    assert max(entry["in_flight"] for entry in log) <= 1  # all that a kill can cost
    whole = extract(tiny_backbone(), tiny_samples(IMAGES), out=tmp_path / "whole.zarr", **OPTIONS)
    assert contents(out) == contents(whole.path)
    assert contents(open_cache(out).receipts) == contents(whole.receipts)
    found = verify_cache(out, recompute=23, backbone=tiny_backbone(), dataset=tiny_samples(IMAGES))
    assert found["intact"]
    assert found["recomputed"]["rows"] == 23
