"""Claims and turns that are not as they should be, and what is left of them."""

import dataclasses
import os

import numpy as np
import pytest

from losa_cache.cache import claims as claims_module
from losa_cache.cache import local_lock
from losa_cache.cache.claims import Claims, LostTurnError
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.extract import create_cache
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents

OPTIONS = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4, "workers": 1}  # shards of 3 rows
IMAGES = 12


@pytest.fixture
def claims(tmp_path):
    """This process has them, on a cache that is not there yet."""
    receipts = LocalPath(tmp_path / "c.zarr.receipts")
    receipts.mkdir()
    with_all = Claims(receipts)
    yield with_all
    with_all.leave()


def another(claims):
    """Claims of another process, as far as the files tell."""
    return Claims(LocalPath(claims.folder.parent))


def bad(samples, numbers):
    def load(number):
        if number in numbers:
            raise OSError("truncated")
        return samples.load(number)

    return dataclasses.replace(samples, load=load)


@pytest.mark.parametrize("part", [pytest.param(None, marks=pytest.mark.slow), "auto"])
@pytest.mark.parametrize(("before", "now"), [((3,), ()), pytest.param((), (3,), marks=pytest.mark.slow)])
def test_a_complete_cache_says_what_its_receipts_say(before, now, part, tmp_path):
    """Shards were lost, and a sample in them decodes now that did not, or the other way round."""
    plain = {"precision": "float32", "shard_bytes": 13_000, "on_error": "skip"}  # nothing is fitted
    samples, given = tiny_samples(IMAGES), OPTIONS | plain | {"out": tmp_path / "c.zarr"}
    cache = extract(tiny_backbone(), bad(samples, before), **given)
    for receipt in cache.receipts.glob("0*.json"):
        receipt.unlink()
    cache = extract(tiny_backbone(), bad(samples, now), **given, part=part)
    whole = extract(tiny_backbone(), bad(samples, now), **given | {"out": tmp_path / "whole.zarr"})
    assert len(cache.manifest.skipped) == len(now)
    assert cache.manifest == whole.manifest
    assert np.array_equal(cache.labels, whole.labels)
    assert verify_cache(cache.path)["intact"]


@pytest.mark.parametrize("step", [pytest.param("create", marks=pytest.mark.slow), "finish"])
def test_a_process_that_lost_its_turn_does_nothing_of_it_and_starts_over(step, tmp_path, monkeypatch, caplog):
    """Another process, with other batches and shards, begins and ends the cache while this one stands still."""
    monkeypatch.setattr("losa_cache.cache.members.PAUSE", 0.0)
    whole = extract(tiny_backbone(), tiny_samples(IMAGES), out=tmp_path / "whole.zarr", **OPTIONS)
    out, look, told = tmp_path / "c.zarr", Claims.look, []
    place, name = {"create": (create_cache, "_fit"), "finish": (local_lock.LocalMetadata, "finish")}[step]
    then = getattr(place, name)

    def stand_still(*arguments, **named):
        if step == "create":
            made = then(*arguments, **named)
        if not told:
            (stopped,) = (out.with_name("c.zarr.receipts") / "claims").glob("*.member")
            told.append(stopped.name.partition(".")[0])
            monkeypatch.setattr(
                Claims, "look", lambda self, token: look(self, token) if token != told[0] else None
            )  # it looks as if it had gone
            extract(tiny_backbone(), tiny_samples(IMAGES), out=out, part="auto", **OPTIONS)
            monkeypatch.setattr(Claims, "look", look)
        return made if step == "create" else then(*arguments, **named)

    monkeypatch.setattr(place, name, stand_still)
    own = OPTIONS | {"batch_size": 2, "shard_bytes": 6_000} if step == "create" else OPTIONS
    cache = extract(tiny_backbone(), tiny_samples(IMAGES), out=out, part="auto", **own)
    assert told
    assert "another process has taken over what this one, which stood still, did" in caplog.text
    assert contents(cache.path) == contents(whole.path)
    assert contents(cache.receipts) == contents(whole.receipts)


def test_a_turn_that_was_lost_is_noticed_and_left_to_the_other(claims, monkeypatch):
    monkeypatch.setattr("losa_cache.cache.members.PAUSE", 0.0)
    other, third = another(claims), another(claims)
    other.look = lambda token: None
    lost = claims.turn()
    lost.__enter__()
    claims.require_turn()
    assert other.take("000001", [1])
    with other.turn():
        for work in (claims.require_turn, claims.clear, lambda: claims.agree(4, first=True)):
            with pytest.raises(LostTurnError):
                work()
        with pytest.raises(LostTurnError):
            lost.__exit__(FileNotFoundError, FileNotFoundError(), None)  # the error comes of the loss
        assert third._take_turn() is None  # though the first number is free again
        other.require_turn()
        assert other.has(1)
    with third.turn():
        third.require_turn()
    assert not [name for name in claims.names if name.startswith("turn")]
    for own in (other, third):
        own.leave()


@pytest.mark.parametrize("owner", [b"", b"\0" * 16, b"a" * 5000, "\u0661".encode() * 16])
def test_a_token_that_is_none_is_of_a_process_that_has_gone(owner, claims):
    for name in ("turn.0", "000001.0"):
        (claims.folder / name).write_bytes(owner)
    with claims.turn():
        claims.require_turn()
    assert claims.take("000001", [1])
    assert claims.has(1)


MAKE = {
    "a folder": lambda file: file.mkdir(),
    "a link": lambda file: file.symlink_to("nowhere"),
    "a named pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", MAKE)
def test_what_lies_in_the_place_of_a_claim_is_named(kind, claims):
    for name, work in (("turn.0", lambda: claims.turn().__enter__()), ("000001.0", lambda: claims.take("000001", [1]))):
        MAKE[kind](claims.folder / name)
        with pytest.raises(UserError, match=rf"claims/{name}'.* is {kind}.*remove it"):
            work()


@pytest.mark.parametrize("rows", [b"0", b"-3", b"99999999999999999999", b"9" * 5000, b"\0\0", b"four"])
def test_rows_of_a_batch_out_of_bounds_are_refused_and_written_anew_by_the_first(rows, claims):
    (claims.folder / "grid").write_bytes(rows)
    with pytest.raises(UserError, match=r"claims/grid' does not hold the rows of a batch.*: stop them all, then run"):
        claims.agree(4, first=False)
    assert claims.agree(4, first=True) == 4
    assert another(claims).agree(8, first=False) == 4
    (claims.folder / "grid").unlink()
    (claims.folder / "grid").mkdir()
    with pytest.raises(UserError, match=r"claims/grid' cannot be written \(.*irectory.*\)"):
        claims.agree(4, first=True)


def test_what_killed_processes_left_goes_with_the_finish(tmp_path):
    out = tmp_path / "c.zarr"
    claims = tmp_path / "c.zarr.receipts" / "claims"
    for _ in range(2):  # the second time the cache is finished already
        claims.mkdir(parents=True)
        for name in ("turn.0.01a0ada6.partial", "0123456789abcdef.member.01a0ada6.partial"):
            (claims / name).write_bytes(b"0123456789abcdef")
        (claims / "000001.0.01a0ada6.partial").touch()
        extract(tiny_backbone(), tiny_samples(3), out=out, part="auto", **OPTIONS)
        assert not claims.exists()


def test_what_others_write_now_stays(claims):
    other = another(claims)
    left = [f"{other.token}.member.01a0ada6.partial", "000001.0.01a0ada6.partial"]
    for name in left:
        (claims.folder / name).write_text(other.token)
    claims.clear()
    assert sorted(claims.names) == sorted([*left, f"{claims.token}.member", f"{other.token}.member"])
    other.leave()
    claims.clear()
    assert claims.names == [f"{claims.token}.member"]


def test_a_folder_that_another_process_removes_is_made_again(claims, monkeypatch):
    """The last one that leaves removes the empty folder, while this one is about to write the first file there."""
    then = claims_module.StorePath, LocalPath.create

    def removed(self, content):
        monkeypatch.setattr(LocalPath, "create", then[1])
        raise FileNotFoundError

    monkeypatch.setattr(LocalPath, "create", removed)
    assert claims.take("000001", [1])


def test_bytes_are_dropped_when_the_shard_was_taken_over_while_they_got_their_name(tmp_path, monkeypatch):
    """Between the look at the claim and the link another process takes over, publishes, and ends."""
    then, found = local_lock.link_if_none, {}

    def stand_still(partial, path):
        if path in found:
            found[path].append(path.read_bytes())
        elif not found:
            (tmp_path / "c.zarr.receipts" / "claims" / "000000.1").write_text("0123456789abcdef")
            path.write_bytes(b"of another")
            found[path] = []
        return then(partial, path)

    monkeypatch.setattr(local_lock, "link_if_none", stand_still)
    monkeypatch.setattr("losa_cache.cache.members.PAUSE", 0.0)
    extract(tiny_backbone(), tiny_samples(6), out=tmp_path / "c.zarr", part="1/2", **OPTIONS)
    assert [*found.values()] == [[b"of another"]]  # as it was when this process had taken the shard over in its turn
    assert not list((tmp_path / "c.zarr").rglob("*.partial"))
