"""SIGKILL at any moment: real extractions, killed dozens of times, end as if nothing had happened."""

import json
import os
import subprocess
import sys

import pytest

from losa_cache.cache.store import open_cache
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents

OPTIONS = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4, "workers": 1}
KILLS, IMAGES, SHARDS = 12, 90, 30

# Loads torch once, then forks an extraction after the other and kills each: at a random moment, or at a random one of
# the steps on the file system (opening, renaming, removing, making folders) that Python itself reports.
NURSERY = """
import glob, json, os, random, signal, sys, time
sys.path.insert(0, {root!r})
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.extract.extract import extract

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile")

def child(out, at=None):
    pid = os.fork()
    if pid:
        return pid
    count = 0
    def step(event, arguments):
        nonlocal count
        if event in STEPS and {out!r} in str(arguments[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
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
started = time.perf_counter()
_, status = os.waitpid(child({out!r} + "-first"), 0)
assert status == 0
whole = time.perf_counter() - started
steps = 30 * int(open({out!r} + ".steps").read()) // 20
log = []
while sum(entry["killed"] for entry in log) < {kills}:
    before = receipts()
    pid = child({out!r}, pick.randrange(1, steps) if {by_step} else None)
    if not {by_step}:
        time.sleep(pick.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    in_flight = len(glob.glob({out!r} + "/activations/block/*.partial"))
    log.append(
        {{"killed": os.WIFSIGNALED(status), "before": before, "after": receipts(), "in_flight": in_flight}}
    )
    if status == 0 and len(log) < {kills}:  # it came through: begin again, to be killed in all places
        os.system("rm -rf " + {out!r} + " " + {out!r} + ".receipts")
        log[-1]["after"] = []
_, status = os.waitpid(child({out!r}), 0)
assert status == 0
print(json.dumps(log))
"""


@pytest.mark.parametrize(
    ("by_step", "seed"),
    [
        pytest.param(False, 0, id="moments"),
        pytest.param(True, 0, id="steps"),
        pytest.param(True, 1, id="more steps", marks=pytest.mark.slow),
    ],
)
def test_killed_again_and_again_the_cache_ends_bit_identical(tmp_path, by_step, seed):
    out = tmp_path / "k.zarr"
    code = NURSERY.format(
        root=os.getcwd(), out=str(out), options=OPTIONS, images=IMAGES, seed=seed, kills=KILLS, by_step=by_step
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
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
