"""What goes wrong with one of several processes costs the others nothing."""

import json
import time

import pytest

from losa_cache.cache.claims import Claims
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.extract.test_parts import IMAGES, OPTIONS, require_same, run, whole

__all__ = ["whole"]

STOPPED = """
import shutil
from losa_cache.cache import local_lock, shard

members.BEAT, members.STALE = 0.05, 0.4
STEPS = {"a row": (shard.ShardWriter, "append", 5), "the bytes of a shard": (local_lock, "link_if_none", 2)}

def stopping(meter):
    place, name, last = STEPS[STEP]
    then, count = getattr(place, name), 0
    def stop(*arguments):
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.2)  # this thread goes on until another one has taken the signal
        return then(*arguments)
    setattr(place, name, stop)

first = child('auto', stopping)
os.waitpid(first, os.WUNTRACED)
done = len(receipts())
wait(child('auto'))
shutil.copytree(out, out + "-before")
os.kill(first, signal.SIGCONT)
wait(first)
print(json.dumps({"done": done}))
"""


@pytest.mark.parametrize("step", [pytest.param("a row", marks=pytest.mark.slow), "the bytes of a shard"])
def test_a_process_that_stood_still_and_goes_on_changes_nothing(step, tmp_path, whole):
    out = tmp_path / "c.zarr"
    (other, stopped, before), log = run(STOPPED.replace("[STEP]", f"[{step!r}]"), out)
    assert before["done"] == 1
    assert (other["complete"], other["images"]) == (True, IMAGES - 3)
    assert stopped["complete"]
    assert log.count("was taken over by another process while this one stood still") == 1
    there = contents(tmp_path / "c.zarr-before")
    assert {name: there[name] for name in contents(out)} == contents(out)
    require_same(out, whole)


def test_a_process_killed_in_a_shard_loses_that_shard_alone(tmp_path, whole):
    code = """
from losa_cache.cache.writer import CacheWriter

def kill_at(last):
    def before(meter):
        append, count = CacheWriter.append, 0
        def dying(*arguments, **named):
            nonlocal count
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            append(*arguments, **named)
        CacheWriter.append, meter.party = dying, 4
    return before

wait(*[child('auto', kill_at(row)) for row in (5, 8, 14)], child('auto', slow(4)))
"""
    (end,), _ = run(code, tmp_path / "c.zarr")
    assert (end["complete"], end["images"]) == (True, IMAGES - 3 * (1 + 2 + 4))  # what the others had finished
    require_same(tmp_path / "c.zarr", whole)


def test_claims_of_a_host_that_died_are_taken_over_when_they_are_stale(tmp_path, whole):
    code = """
members.BEAT, members.STALE = 0.05, 0.4
pid = child('auto', slow())
while len(receipts()) < 4: time.sleep(0.002)
os.kill(pid, signal.SIGKILL)
wait(pid)
for name in glob.glob(out + ".receipts/claims/*.member"):  # as of another machine, of whose processes nothing is known
    member = json.load(open(name))
    member["process"]["namespace"] = "another"
    json.dump(member, open(name, "w"))
began = time.monotonic()
wait(child('auto'))
print(json.dumps({"waited": time.monotonic() - began}))
"""
    (end, waited), _ = run(code, tmp_path / "c.zarr")
    assert end["complete"]
    assert end["images"] <= IMAGES - 12
    assert waited["waited"] >= 0.4
    require_same(tmp_path / "c.zarr", whole)


@pytest.mark.slow
def test_clocks_an_hour_apart_do_not_matter(tmp_path, whole):
    code = """
def clock(hours):
    def before(meter):
        slow(3)(meter)
        for module, name in ((time, "time"), (members, "monotonic")):
            setattr(module, name, lambda real=getattr(module, name): real() + 3600 * hours)
    return before

members.BEAT, members.STALE = 0.02, 2.0
wait(*[child('auto', clock(hours)) for hours in (1, -1, 0)])
"""
    ends, log = run(code, tmp_path / "c.zarr")
    assert sum(end["images"] for end in ends) == IMAGES
    assert "taken over" not in log
    require_same(tmp_path / "c.zarr", whole)


def test_a_disk_that_is_full_for_one_process_stops_that_one_alone(tmp_path, whole):
    code = """
import resource

def full(meter):
    slow(2)(meter)
    start = meter.start
    def filled(total):
        start(total)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
    meter.start = filled

wait(child('auto', full), child('auto', slow(2)))
"""
    ends, _ = run(code, tmp_path / "c.zarr")
    failed, done = sorted(ends, key=lambda end: "complete" in end)
    assert "File too large): finished shards are kept" in failed["error"]
    assert done["complete"]
    require_same(tmp_path / "c.zarr", whole)


@pytest.mark.slow
def test_sixteen_processes_that_finish_at_once_finish_once(tmp_path, whole):
    code = """
import mmap
from losa_cache.cache.metadata_files import LocalMetadata
from losa_cache.extract.session import Writing

ready, finish, end = mmap.mmap(-1, 16), LocalMetadata.finish, Writing.finish

def meet(number):
    def before(meter):
        def waiting(self):
            ready[number] = 1
            while sum(ready[:]) < 16:
                time.sleep(0.002)
            return end(self)
        def finishing(self, *arguments):
            print(json.dumps({"finished": number}), flush=True)
            finish(self, *arguments)
        Writing.finish, LocalMetadata.finish = waiting, finishing
    return before

wait(*[child(f'{number + 1}/16', meet(number)) for number in range(16)])
"""
    ends, _ = run(code, tmp_path / "c.zarr")
    assert sum("finished" in end for end in ends) == 1
    assert [end["complete"] for end in ends if "part" in end] == [True] * 16
    require_same(tmp_path / "c.zarr", whole)


def test_what_a_power_cut_left_in_part_is_written_again(tmp_path, whole):
    out = tmp_path / "c.zarr"
    run("pid = child('auto', slow())\nwhile len(receipts()) < 6: time.sleep(0.002)\nos.kill(pid, 9)\nwait(pid)", out)
    receipts = sorted(receipts_of(LocalPath(out)).glob("0*.json"))
    receipts[1].write_bytes(b"{}")
    shard = next((out / "activations" / "block").glob(f"c.{int(receipts[3].stem)}.*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    (end,), _ = run("wait(child('auto'))", out)
    assert end["images"] == IMAGES - 3 * (len(receipts) - 2)
    require_same(out, whole)


def test_without_hard_links_there_is_a_sentence(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    with pytest.raises(UserError, match=r"has no hard links .*: extract without --part"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", part="auto", **OPTIONS)


def test_one_owner_at_a_time_has_a_claim_and_the_next_generation_takes_over(tmp_path, monkeypatch):
    monkeypatch.setattr("losa_cache.cache.members.STALE", 0.1)
    receipts = LocalPath(tmp_path / "c.zarr.receipts")
    receipts.mkdir()
    one, two, three = (Claims(receipts) for _ in range(3))
    assert one.take("000007", [7, 8])
    assert not one.take("000007", [7, 8])
    assert not two.take("000007", [7, 8])
    assert one.has(7)
    assert not two.has(7)
    while not two.take("000007", [7, 8]):  # no new number of the first
        time.sleep(0.02)
    assert not one.has(8)
    assert two.has(8)
    two.leave()
    assert three.take("000007", [7, 8])
    assert not two.has(8)
    assert (receipts / "claims" / "000007.2").read_text() == three.token
    three.clear()
    assert not three.has(7)
    assert json.loads(three.file(three.token).read())["process"]["number"] > 0
    for own in (one, three):
        own.leave()
    assert not list((receipts / "claims").iterdir())


def test_turns_are_taken_one_after_the_other_though_one_dies_in_its_own(tmp_path):
    code = """
import fcntl
from losa_cache.cache.claims import Claims
from losa_cache.cache.stores.local import LocalPath

def in_turn(number):
    if pid := os.fork():
        return pid
    members.PAUSE = 0.001
    claims = Claims(LocalPath(out))
    for time_of in range(8):
        with claims.turn(), open(out + "/alone", "w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.001)
            if (number, time_of) == (3, 4):
                os._exit(0)
    claims.leave()
    os._exit(0)

os.mkdir(out)
wait(*[in_turn(number) for number in range(6)])
print(json.dumps(os.listdir(out + "/claims")))
"""
    (left,), _ = run(code, tmp_path / "c.zarr.receipts")
    assert sum(name.endswith(".member") for name in left) == 1  # of the one that died


@pytest.mark.slow
def test_killed_again_and_again_together_they_end_as_one_would(tmp_path, whole):
    """Kills twenty of three processes at a time; takes about 15 s."""
    code = """
import random, shutil

pick, kills = random.Random(0), 0
while kills < 20:
    pids = [child('auto', slow(3)) for _ in range(3)]
    time.sleep(pick.uniform(0.3, 0.8))
    for pid in pids:
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            kills += 1
    if len(receipts()) == 30:
        shutil.rmtree(out), shutil.rmtree(out + ".receipts")
    shutil.rmtree(out + ".party", ignore_errors=True)  # none where all were killed before
wait(*[child('auto') for _ in range(3)])
"""
    run(code, tmp_path / "c.zarr")
    require_same(tmp_path / "c.zarr", whole)
    found = verify_cache(tmp_path / "c.zarr", recompute=5, backbone=tiny_backbone(), dataset=tiny_samples(IMAGES))
    assert found["intact"]
    assert open_cache(tmp_path / "c.zarr").manifest == whole.manifest
