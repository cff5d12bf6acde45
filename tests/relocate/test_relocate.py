"""Caches that are copied, moved and removed: whole or not at all, with their receipts and their notes."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.cache.registry import known_stores, knows
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import open_cache
from losa_cache.cache.stores.remote import RemotePath
from losa_cache.cache.writer import lock_cache
from losa_cache.cli import app
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import NUMBERS, TargetSet
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.servers import BUCKET
from tests.steps import killed_at_steps


def files(cache):
    """Hash of every file of a cache and of its receipts, but for the lock."""
    return files_at(cache.path)


def files_at(path):
    receipts = {f"receipts/{name}": digest for name, digest in contents(receipts_of(path)).items() if name != "lock"}
    return contents(path) | receipts


@pytest.fixture
def cache(tiny_cache):
    add_targets(tiny_cache, TargetSet("count", NUMBERS, ["x"], np.ones((23, 1), np.float32)))
    return open_cache(tiny_cache.path)


def test_a_copy_has_the_same_files_and_its_own_note_of_the_same_age(cache, tmp_path):
    (tmp_path / "folder").mkdir()
    shares = []
    copied = lc.copy_cache(cache, tmp_path / "folder", progress=shares.append)
    assert copied.path == tmp_path / "folder" / "tiny.zarr"
    assert files(copied) == files(cache)
    assert verify_cache(copied.path)["intact"]
    assert set(known_stores()) == {cache.path, copied.path}
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert lc.copy_cache(cache.path, copied.path).path == copied.path  # again: it is there


def test_a_move_on_one_file_system_renames_and_the_list_follows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"backbone": "vit_digits", "dataset": "digits", "limit": 4, "layers": 1, "out": tmp_path / "a.zarr"}
    cache = extract(**options)
    before, inode = files(cache), cache.path.stat().st_ino
    moved = lc.move_cache(cache, tmp_path / "new" / "b.zarr")
    assert (files(moved), moved.path.stat().st_ino) == (before, inode)
    assert known_stores() == [moved.path]
    assert knows(moved.path, moved.manifest)  # this user may still compute its samples again
    assert not knows(cache.path, cache.manifest)
    assert not cache.path.exists()
    assert not cache.receipts.exists()


def test_a_move_to_another_file_system_copies_checks_and_removes(cache, tmp_path, monkeypatch):
    before = files(cache)
    devices = {tmp_path: 1, tmp_path / "far": 2}
    monkeypatch.setattr("losa_cache.relocate.move._device", lambda place: devices[place.parent])
    (tmp_path / "far").mkdir()
    lc.copy_cache(cache, tmp_path / "far" / "tiny.zarr")  # a move was killed between the copy and the removal
    moved = lc.move_cache(cache, tmp_path / "far" / "tiny.zarr")
    assert files(moved) == before
    assert known_stores() == [moved.path]
    assert not cache.path.exists()
    assert not cache.receipts.exists()


CALLS = {
    "copy": ("lc.copy_cache(old, new)", [True, True]),
    "move": ("lc.move_cache(old, new)", [False, True]),
    "remove": ("lc.remove_cache(old)", [False, False]),
}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", [pytest.param("copy", marks=pytest.mark.slow), "move", "remove"])
def test_killed_at_any_step_and_called_again_it_ends_as_if_nothing_had_happened(verb, every, tiny_original, tmp_path):
    call, ends = CALLS[verb]
    code = f"""
        import shutil
        import losa_cache as lc
        from losa_cache.cache.storage import receipts_of
        from losa_cache.cache.stores.local import LocalPath
        from losa_cache.errors import UserError
        from losa_cache.files import clear
        from tests.relocate.test_relocate import files_at
        whole = LocalPath({str(tiny_original.path)!r})
        base = LocalPath({str(tmp_path)!r})
        old, new = base / "old.zarr", base / "new.zarr"
        wanted = files_at(whole)
        def again():
            for left in base.glob("*.zarr*"):
                clear(left)
            shutil.copytree(whole, old)
            shutil.copytree(receipts_of(whole), receipts_of(old))
        def call():
            try:
                {call}
            except UserError as error:
                if "there is no cache" not in str(error) or {verb!r} == "copy":
                    raise
                # it had come through before it was killed
        def check():
            for place, end in zip((old, new), {ends}):
                assert place.exists() == receipts_of(place).exists() == end, (place, end)
                if end:
                    assert files_at(place) == wanted
            left = {{path.name.removesuffix(".receipts") for path in base.glob("*.zarr*")}}
            assert left <= {{"old.zarr", "new.zarr"}}, left
    """
    assert killed_at_steps(code, tmp_path, kills=None if every else 2) >= 2


def test_what_cannot_be_done_is_a_sentence_and_nothing_changes(cache, tmp_path):
    other = extract(tiny_backbone(1), tiny_samples(5), out=tmp_path / "other.zarr")
    before, theirs = files(cache), files(other)
    with pytest.raises(UserError, match=r"other\.zarr' is there already, and is no copy of '.*tiny\.zarr'"):
        lc.copy_cache(cache, other.path)
    with pytest.raises(UserError, match=r"other\.zarr' is there already: name another place"):
        lc.move_cache(cache, other.path)
    with pytest.raises(UserError, match="is the cache itself"):
        lc.move_cache(cache, tmp_path)
    for call in (lc.remove_cache, lambda place: lc.move_cache(place, tmp_path / "new.zarr")):
        with lock_cache(cache.path), pytest.raises(UserError, match="another process is writing .*: wait for it"):
            call(cache)
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / "one.jpg").write_bytes(b"mine")
        with pytest.raises(UserError, match="there is no cache at '.*photos'"):
            call(tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"mine"
    assert (files(cache), files(other)) == (before, theirs)
    shard = cache.shard_path(2)
    shard.write_bytes(shard.read_bytes()[:100] + b"?" + shard.read_bytes()[101:])
    with pytest.raises(UserError, match="shard 2 of .* is damaged"):
        lc.copy_cache(cache, tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()


def test_what_another_copy_left_is_not_mixed_with_this_one(cache, tmp_path, monkeypatch):
    other = extract(tiny_backbone(1), tiny_samples(), precision="float32", out=tmp_path / "o.zarr", shard_bytes=13_000)
    monkeypatch.setattr("losa_cache.cache.local_copy.sync_tree", lambda _: 1 / 0)  # all but the last rename
    with pytest.raises(ZeroDivisionError):
        lc.copy_cache(other, tmp_path / "new.zarr")
    monkeypatch.undo()
    assert files(lc.copy_cache(cache, tmp_path / "new.zarr")) == files(cache)


def test_an_incomplete_cache_can_be_moved_and_removed_and_not_copied(cache, tmp_path):
    root = cache.path / "zarr.json"
    root.write_text(root.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(UserError, match="is incomplete"):
        lc.copy_cache(cache.path, tmp_path / "new.zarr")
    moved = lc.move_cache(cache.path, tmp_path / "new.zarr")
    assert not moved.manifest.complete
    lc.remove_cache(moved.path)
    assert not moved.path.exists()


def test_the_command_asks_before_it_deletes(cache, tmp_path, monkeypatch):
    run = CliRunner()
    with pytest.raises(UserError, match=r"tiny\.zarr' would be deleted, .* no terminal to ask on: pass --yes"):
        run.invoke(app, ["remove", str(cache.path)], catch_exceptions=False)
    monkeypatch.setattr("losa_cache.cli_relocate._asks", lambda: True)
    refused = run.invoke(app, ["remove", str(cache.path)], input="n\n")
    assert refused.exit_code == 1
    assert cache.path.exists()
    for verb in ("copy", "move"):
        done = run.invoke(app, [verb, str(cache.path), str(tmp_path / f"{verb}.zarr")], catch_exceptions=False)
        assert done.exit_code == 0
        assert open_cache(tmp_path / f"{verb}.zarr").manifest == cache.manifest
    done = run.invoke(app, ["remove", str(tmp_path / "move.zarr"), "--yes", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert known_stores() == [tmp_path / "copy.zarr"]


@pytest.mark.slow
@pytest.mark.usefixtures("s3_environment")
def test_a_server_takes_part_like_any_disk(cache, tmp_path, request):
    before = files(cache)
    url = f"s3://{BUCKET}/{request.node.name}/a.zarr"
    there = lc.copy_cache(cache, url)
    assert verify_cache(url)["intact"]
    shutil.copytree(cache.path, tmp_path / "saved.zarr")
    shutil.copytree(cache.receipts, receipts_of(tmp_path / "saved.zarr"))
    (there.receipts / "000002.json").unlink()  # an upload was interrupted here
    (there.path / "zarr.json").unlink()
    assert lc.copy_cache(cache, url).manifest == cache.manifest
    further = lc.move_cache(url, url.replace("/a.zarr", "/b.zarr"))
    assert not list(RemotePath.parse(url).scan())
    assert not list(receipts_of(RemotePath.parse(url)).scan())
    back = lc.move_cache(further, tmp_path / "back.zarr")
    assert files(back) == before
    (there.path / "x").write(b"no cache")
    with pytest.raises(UserError, match="there is no cache at"):
        lc.remove_cache(url)
