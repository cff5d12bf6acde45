"""Copies on a near disk: whole or not at all, checked, resumable, made once."""

import hashlib
import json
import shutil
import signal
import time
import urllib.request
from collections import namedtuple
from dataclasses import replace

import pytest

import losa_cache as lc
from losa_cache.cache import local_copy
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.files import write_sealed
from tests.conftest import losa_cache, tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked
from tests.servers import http_server

CHILD = """
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.store import open_cache
stage_cache(open_cache({cache!r}), {folder!r})
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of 60 samples in 20 shards."""
    out = tmp_path_factory.mktemp("far") / "far.zarr"
    options = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4}
    return extract(tiny_backbone(), tiny_samples(60), out=out, **options)


@pytest.fixture
def http(cache):
    with http_server(cache.path.parent) as address:
        yield f"{address}/far.zarr"


def child(cache, folder):
    return Forked("-c", CHILD.format(cache=str(cache), folder=str(folder)))


def require_copy(copied, cache):
    assert contents(copied.path) == contents(cache.path)
    assert contents(copied.receipts) == contents(cache.receipts)
    assert not copied.remote
    assert verify_cache(copied.path)["intact"]


@pytest.mark.parametrize("far", ["http", "disk"])
def test_a_copy_is_the_cache_and_is_made_once(cache, http, far, tmp_path):
    given = open_cache(http) if far == "http" else cache
    shares = []
    copied = stage_cache(given, tmp_path / "near", progress=shares.append)
    assert copied.path.name == f"far-{cache.manifest.identity[7:19]}.zarr"
    require_copy(copied, cache)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert stage_cache(given, tmp_path / "near", progress=shares.clear).path == copied.path
    assert shares[-1] == 1  # not asked again


def test_a_cache_without_receipts_is_copied_and_checked_too(cache, tmp_path):
    shutil.copytree(cache.path, tmp_path / "far.zarr")
    copied = stage_cache(open_cache(tmp_path / "far.zarr"), tmp_path / "near")
    assert contents(copied.path) == contents(cache.path)
    shard = open_cache(tmp_path / "far.zarr").shard_path(4)
    shard.write_bytes(shard.read_bytes()[:100] + b"?" + shard.read_bytes()[101:])
    with pytest.raises(UserError, match=r"shard 4 of '.*far\.zarr' is damaged \(chunk \d"):
        stage_cache(open_cache(tmp_path / "far.zarr"), tmp_path / "other")


@pytest.mark.slow
def test_a_killed_copy_goes_on_with_the_shards_that_lack(cache, tmp_path):
    near = tmp_path / "near"
    with http_server(cache.path.parent, latency=0.1) as address:
        process = child(f"{address}/far.zarr", near)
        while len(done := list(near.glob("*.partial/activations/block/c.*.0.0.0"))) < 5:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list(near.glob("far-????????????.zarr"))
        before = {path: path.stat().st_ino for path in done}
        asked = json.loads(urllib.request.urlopen(f"{address}/parts").read())
        copied = stage_cache(open_cache(f"{address}/far.zarr"), near)
        again = json.loads(urllib.request.urlopen(f"{address}/parts").read())[len(asked) :]
    require_copy(copied, cache)
    kept = {path.name for path in before}
    assert len(kept) < 20
    assert {path.rpartition("/")[2] for path in again} == {f"c.{n}.0.0.0" for n in range(20)} - kept
    assert [(copied.path / "activations/block" / path.name).stat().st_ino for path in before] == list(before.values())


def test_two_at_once_make_one_copy(cache, tmp_path):
    with http_server(cache.path.parent, latency=0.02) as address:
        both = [child(f"{address}/far.zarr", tmp_path / "near") for _ in range(2)]
        ended = [process.wait() for process in both]
        assert [process.returncode for process in ended] == [0, 0], [process.stderr for process in ended]
        asked = json.loads(urllib.request.urlopen(f"{address}/parts").read())
    assert len(asked) == len(set(asked)) == 20  # each shard once
    (copied,) = (tmp_path / "near").glob("*.zarr")
    require_copy(open_cache(copied), cache)


@pytest.mark.parametrize("lost", ["flipped", "gone", "another"])
def test_a_damaged_shard_is_named_and_nothing_appears(cache, lost, tmp_path):
    for folder in (cache.path, cache.receipts):
        shutil.copytree(folder, tmp_path / folder.name)
    given = open_cache(tmp_path / "far.zarr")
    shard = given.shard_path(3)
    content = bytearray(shard.read_bytes())
    content[70] ^= 2
    shard.unlink()
    if lost == "another":
        shutil.copy(given.shard_path(2), shard)
    elif lost == "flipped":
        shard.write_bytes(content)
    with pytest.raises(
        UserError, match=r"shard 3 of '.*far\.zarr' is damaged \(.*\): losa-cache verify --repair mends"
    ):
        stage_cache(given, tmp_path / "near")
    assert not list((tmp_path / "near").glob("far-????????????.zarr"))
    shutil.copy(cache.shard_path(3), shard)
    require_copy(stage_cache(given, tmp_path / "near"), cache)


def test_a_copy_of_a_cache_of_replaced_files_is_not_taken_for_it(cache, tmp_path):
    samples = tiny_samples(60)
    other = replace(
        samples, load=lambda i: samples.load((i + 1) % 60)
    )  # names and sizes, so the identity, are the same
    options = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4}
    made = extract(tiny_backbone(), other, out=tmp_path / "far.zarr", **options)
    assert made.manifest.identity == cache.manifest.identity
    stage_cache(made, tmp_path / "near")
    with pytest.raises(UserError, match=r"is not a copy of '.*/far.zarr' as it is now: delete it"):
        stage_cache(cache, tmp_path / "near")


def test_a_damaged_file_of_the_core_is_put_back_from_its_copy(cache, tmp_path):
    for folder in (cache.path, cache.receipts):
        shutil.copytree(folder, tmp_path / folder.name)
    given = open_cache(tmp_path / "far.zarr")
    (given.path / "tail/norm.bias/c/0").write_bytes(b"other")
    require_copy(stage_cache(given, tmp_path / "near"), cache)


def test_a_list_of_files_that_leads_out_of_the_folder_is_not_followed(cache, tmp_path):
    for folder in (cache.path, cache.receipts):
        shutil.copytree(folder, tmp_path / "served" / folder.name)
    (tmp_path / "served" / "stray").write_text("from the server")
    listed = tmp_path / "served/far.zarr.receipts/core/files.json"
    files = json.loads(listed.read_text())["files"]
    write_sealed(listed, {"files": files | {"../stray": hashlib.sha256(b"from the server").hexdigest()}})
    with (
        http_server(tmp_path / "served") as address,
        pytest.raises(UserError, match="cannot be read .files.json names"),
    ):
        stage_cache(open_cache(f"{address}/far.zarr"), tmp_path / "near")
    assert not list((tmp_path / "near").rglob("stray"))


def test_no_room_is_said_before_anything_is_copied(cache, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda _: usage(0, 0, 10))
    with pytest.raises(UserError, match=r"needs 42\.1 kB more, but '.*near' has 10 B free"):
        stage_cache(cache, tmp_path / "near")
    assert not list(tmp_path.glob("near/*.zarr*/activations"))


def test_a_folder_that_cannot_be_made_is_a_sentence(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"staging '.*far\.zarr' in '.*file' failed \(.+\)"):
        stage_cache(cache, tmp_path / "file")


def test_a_run_keeps_the_original_and_resumes_with_the_copy_or_without(http, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"rank": 2, "epochs": 2, "batch_size": 8, "device": "cpu"}
    whole = lc.train(cache.path, out="whole", **options)
    staged = lc.train(http, out="staged", stage="near", **options)
    assert json.loads((staged.run / "config.json").read_text())["cache"] == http
    for stage in ("near", None):
        (staged.run / "checkpoint.pt").unlink()
        again = lc.resume(staged.run, stage=stage, device="cpu")
        for name in ("train_loss", "val_loss", "val_top1"):
            assert again.metrics[name] == staged.metrics[name] == whole.metrics[name]


@pytest.mark.slow
def test_the_command_line_stages(http, tmp_path):
    near = tmp_path / "near"
    done = losa_cache(
        *("train", "--cache", http, "--stage", str(near), "--rank", "2", "--epochs", "1", "--out", "run", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(near)
    (tmp_path / "run/checkpoint.pt").unlink()
    again = losa_cache("train", "--resume", "run", "--stage", str(near), "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["train_loss"] == json.loads(done.stdout)["train_loss"]
    assert len(list(near.glob("*.zarr"))) == 1


def test_a_run_without_a_cache_has_nothing_to_stage(tmp_path):
    online = lc.OnlineConfig("vit_digits", "digits")
    with pytest.raises(UserError, match="--stage 'near' copies a cache, and this run has none"):
        lc.train(online=online, stage="near", out=tmp_path / "run")
