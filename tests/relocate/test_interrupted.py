"""Moves, copies and removals that meet what another command left, or what is damaged: no cache is lost."""

import os
import shutil

import numpy as np
import pytest

import losa_cache as lc
from losa_cache.cache.half_done import MOVE_NOTE, note_move, note_removal
from losa_cache.cache.local_copy import LocalCopy
from losa_cache.cache.registry import known_stores
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.cache.writer import lock_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.relocate.remove import noted
from losa_cache.remake.transcode import transcode
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import NUMBERS, TargetSet
from tests.conftest import tiny_backbone, tiny_samples
from tests.relocate.test_relocate import files, files_at


def put(cache, place):
    """Copy a cache's files as they are."""
    shutil.copytree(cache.path, place)
    shutil.copytree(cache.receipts, receipts_of(place))
    return open_cache(place)


@pytest.fixture(scope="module")
def other_original(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("other")
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        return extract(tiny_backbone(1), tiny_samples(5), precision="float32", out=folder / "other.zarr")


@pytest.fixture
def other(other_original, tmp_path):
    return put(other_original, LocalPath(tmp_path / "other.zarr"))


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A folder that counts as another file system."""
    (tmp_path / "far").mkdir()
    monkeypatch.setattr("losa_cache.relocate.move._device", lambda place: place.parent.name)
    return LocalPath(tmp_path / "far")


def half_removed(cache, renamed):
    """Leave a cache as a removal that is killed after so many renames."""
    note, folders = noted(cache.path), (cache.path, cache.receipts)
    for folder in folders:
        note_removal(folder, note)
    for folder in folders[:renamed]:
        folder.rename(folder.with_name(folder.name + ".removed"))


def half_moved(cache, target, *, receipts):
    """Leave a cache as a move that is killed after its first rename, or the second, too."""
    for folder in (cache.path, cache.receipts):
        note_move(folder, {"source": str(cache.path), "target": str(target)})
    cache.path.rename(target.with_name(target.name + ".moving"))
    if receipts:
        cache.receipts.rename(receipts_of(target))


def test_leftovers_of_a_removal_are_no_proof_that_a_new_cache_was_copied(tiny_cache, other, far):
    theirs, ours = put(other, far / "y.zarr"), files(tiny_cache)
    (tiny_cache.path.with_name("tiny.zarr.removed")).mkdir()
    with pytest.raises(UserError, match=r"y\.zarr' is there already, and is no copy"):
        lc.move_cache(tiny_cache, theirs.path)
    assert files(tiny_cache) == ours
    assert files(theirs) == files(other)


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_half_removed_cache_is_moved_only_onto_its_copy(tiny_cache, other, far, renamed):
    copied, theirs = put(tiny_cache, far / "copy.zarr"), put(other, far / "y.zarr")
    half_removed(tiny_cache, renamed)
    left = {path.name for path in tiny_cache.path.parent.glob("tiny.zarr*")}
    with pytest.raises(UserError, match=r"y\.zarr' is no copy of it: run losa-cache remove '.*tiny\.zarr' to end it"):
        lc.move_cache(tiny_cache, theirs.path)
    assert {path.name for path in tiny_cache.path.parent.glob("tiny.zarr*")} == left
    assert lc.move_cache(tiny_cache, copied.path).path == copied.path
    assert not list(tiny_cache.path.parent.glob("tiny.zarr*"))


@pytest.mark.parametrize("damage", ["lost", "altered"])
def test_a_copy_that_is_damaged_replaces_no_cache(tiny_cache, far, damage):
    before, copied = files(tiny_cache), put(tiny_cache, far / "tiny.zarr")
    shard = copied.shard_path(1)
    if damage == "lost":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:50] + b"?" + shard.read_bytes()[51:])
    for call in (lc.copy_cache, lc.move_cache):
        with pytest.raises(
            UserError, match=r"far/tiny\.zarr' is there already, a copy of .* that is damaged \(shard 1"
        ):
            call(tiny_cache, copied.path)
    assert files(tiny_cache) == before


def test_nobody_adds_target_sets_to_a_cache_on_its_way_to_another_disk(tiny_cache, far):
    late = TargetSet("late", NUMBERS, ["x"], np.ones((23, 1), np.float32))
    refused = []

    def add(_):
        if not refused:
            with pytest.raises(UserError, match="another process is writing"):
                add_targets(tiny_cache.path, late)
            refused.append(True)

    assert not lc.move_cache(tiny_cache, far / "tiny.zarr", progress=add).manifest.targets
    assert refused
    assert not tiny_cache.path.exists()


def test_a_cache_that_changes_while_it_is_copied_is_copied_again(tiny_cache, tmp_path, monkeypatch):
    late = TargetSet("late", NUMBERS, ["x"], np.ones((23, 1), np.float32))
    opened = open_cache(tiny_cache.path)

    def changed(*begun):
        add_targets(tiny_cache.path, late)
        return LocalCopy(*begun)

    monkeypatch.setattr("losa_cache.relocate.copy.LocalCopy", changed)
    with pytest.raises(UserError, match="is being changed: run the same command again"):
        lc.copy_cache(opened, tmp_path / "new.zarr")
    monkeypatch.setattr("losa_cache.relocate.copy.LocalCopy", LocalCopy)
    assert not (tmp_path / "new.zarr").exists()
    assert files(lc.copy_cache(opened, tmp_path / "new.zarr")) == files(tiny_cache)


def test_no_cache_is_moved_onto_a_place_that_somebody_writes(tiny_cache, tmp_path):
    before, target = files(tiny_cache), LocalPath(tmp_path / "new.zarr")
    with lock_cache(target), pytest.raises(UserError, match=r"another process is writing the cache .*new\.zarr'"):
        lc.move_cache(tiny_cache, target)
    assert files(tiny_cache) == before
    (receipts_of(target) / "claims").mkdir()  # an extraction in parts was interrupted
    assert files(lc.move_cache(tiny_cache, target)) == before


def test_receipts_of_another_cache_are_never_mixed_with_this_one(tiny_cache, other, tmp_path):
    before, target = files(tiny_cache), LocalPath(tmp_path / "new.zarr")
    shutil.copytree(other.receipts, receipts_of(target))
    for call in (lc.copy_cache, lc.move_cache):
        with pytest.raises(UserError, match=r"new\.zarr\.receipts' is there already, of another cache"):
            call(tiny_cache, target)
    assert files(tiny_cache) == before
    assert files_at(target) == {name: one for name, one in files(other).items() if name.startswith("receipts/")}


@pytest.mark.parametrize("receipts", [False, True])
def test_a_half_done_move_is_ended_by_its_own_command_alone(tiny_cache, other, tmp_path, receipts):
    before, target = files(tiny_cache), LocalPath(tmp_path / "new.zarr")
    half_moved(tiny_cache, target, receipts=receipts)
    again = r"was interrupted: run losa-cache move '.*tiny\.zarr' '.*new\.zarr' again"
    places = [target] if receipts else [target, tiny_cache.path]  # later nothing of the cache is at its old place
    for place in places:
        for call in (
            lambda place: lc.copy_cache(other, place),
            lambda place: lc.move_cache(other, place),
            lambda place: extract(tiny_backbone(1), tiny_samples(5), out=place),
            lc.remove_cache,
            lambda place: lc.move_cache(place, tmp_path / "elsewhere.zarr"),
        ):
            with pytest.raises(UserError, match=again):
                call(place)
    moved = lc.move_cache(tiny_cache.path, target)
    assert files(moved) == before
    assert known_stores() == [target]


def test_a_move_that_was_killed_at_its_end_still_has_the_list_follow(tiny_cache, tmp_path):
    before, target = files(tiny_cache), LocalPath(tmp_path / "new.zarr")
    half_moved(tiny_cache, target, receipts=True)
    target.with_name("new.zarr.moving").rename(target)
    assert files(lc.move_cache(tiny_cache.path, target)) == before
    assert known_stores() == [target]


def test_folders_that_only_have_the_names_are_left_alone(tiny_cache, tmp_path):
    before = files(tiny_cache)
    for name in ("tiny.zarr.removed", "new.zarr.moving"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"tiny\.zarr\.removed' is in the way"):
        lc.remove_cache(tiny_cache)
    with pytest.raises(UserError, match=r"new\.zarr\.moving' is in the way"):
        lc.move_cache(tiny_cache, tmp_path / "new.zarr")
    with pytest.raises(UserError, match="there is no cache"):
        lc.move_cache(tmp_path / "none.zarr", tmp_path / "new.zarr")
    assert files(tiny_cache) == before
    assert (tmp_path / "tiny.zarr.removed" / "mine").exists()


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_removal_ends_though_somebody_was_there_meanwhile(tiny_cache, renamed):
    half_removed(tiny_cache, renamed)
    with pytest.raises(UserError, match="there is no cache|a removal of .* was interrupted"):
        open_cache(tiny_cache.path)
    if renamed == 2:
        tiny_cache.receipts.mkdir()
    else:
        with pytest.raises(UserError, match=r"a removal of .* was interrupted: run losa-cache remove"):
            extract(tiny_backbone(), tiny_samples(), out=tiny_cache.path)
    (tiny_cache.receipts / "lock").touch()
    lc.remove_cache(tiny_cache)
    assert not list(tiny_cache.path.parent.glob("tiny.zarr*"))


def test_a_name_too_long_to_be_removed_is_refused_before_anything_is_done(tiny_cache, tmp_path):
    longest = put(tiny_cache, LocalPath(tmp_path / ("n" * 241 + ".zarr")))
    before = files(longest)
    with pytest.raises(UserError, match="too long a name"):
        lc.remove_cache(longest)
    assert files(longest) == before
    lc.remove_cache(lc.move_cache(longest, tmp_path / "short.zarr"))
    assert known_stores() == [tiny_cache.path]


def test_no_cache_is_put_into_itself(tiny_cache):
    before = files(tiny_cache)
    calls = (lc.copy_cache, lc.move_cache, lambda cache, place: transcode(cache, place, layers=2))
    for place in (tiny_cache.path / "y.zarr", tiny_cache.receipts, tiny_cache.receipts / "y.zarr"):
        for call in calls:
            with pytest.raises(UserError, match="one in the other|lies in it or its receipts"):
                call(tiny_cache, place)
    assert files(tiny_cache) == before


def test_a_cache_with_a_damaged_root_moves_with_its_note(tiny_cache, tmp_path):
    (tiny_cache.path / "zarr.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"new\.zarr' cannot be read as a cache"):
        lc.move_cache(tiny_cache.path, tmp_path / "new.zarr")
    assert known_stores() == [tmp_path / "new.zarr"]
    assert not (tmp_path / "new.zarr" / MOVE_NOTE).exists()
    (receipts_of(tmp_path / "new.zarr") / "core" / "zarr.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"new\.zarr' cannot be read as a cache"):
        lc.remove_cache(tmp_path / "new.zarr")


@pytest.mark.parametrize("name", ["tiny.zarr.receipts", "tiny.zarr.receipts/lock"])
def test_links_in_the_place_of_receipts_or_lock_are_refused(tiny_cache, tmp_path, name):
    link, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    os.rename(link, elsewhere) if link.exists() else None
    link.symlink_to(elsewhere)
    for call in (lc.remove_cache, lambda cache: lc.move_cache(cache, tmp_path / "new.zarr")):
        with pytest.raises(UserError, match="is a link: put what it leads to in its place"):
            call(tiny_cache)
    assert open_cache(tiny_cache.path).manifest == tiny_cache.manifest
