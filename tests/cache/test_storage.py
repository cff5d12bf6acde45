"""A store of another kind, in one class: what the contract asks of it is enough to extract, train and verify."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

import losa_cache as lc
from losa_cache.cache.claims import Claims
from losa_cache.cache.location import locate
from losa_cache.cache.object_sign import Sign
from losa_cache.cache.object_store import ObjectPath
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.extract import share
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.verify import verify_cache
from losa_cache.targets.target_set import NUMBERS, TargetSet
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents

OPTIONS = {"precision": "int8", "shard_bytes": 4_000, "batch_size": 4, "workers": 1}
OBJECTS: dict[str, bytes] = {}
STEPS: list[str] = []
"""Names of what was changed, one after the other."""


class KilledError(BaseException):
    """In place of a kill: nothing that is done after it changes the store."""


LAST = [10**9]
"""Number of the step at which the writer is killed."""


def step(name: str) -> None:
    STEPS.append(name)
    if len(STEPS) >= LAST[0]:
        raise KilledError


@dataclass(frozen=True)
class MemoryPath(ObjectPath):
    """A place in this process's memory."""

    schemes = ("memory",)

    @classmethod
    def parse(cls, text: str) -> "MemoryPath":
        root, _, key = text.rpartition("/")
        return cls(root, key)

    def scan(self) -> Iterator[tuple[str, int]]:
        start = f"{self}/"
        yield from [(name.removeprefix(start), len(OBJECTS[name])) for name in OBJECTS if name.startswith(start)]

    def size(self) -> int:
        return len(self.read())

    def read(self) -> bytes:
        try:
            return OBJECTS[str(self)]
        except KeyError:
            raise FileNotFoundError(str(self)) from None

    def read_ranges(self, starts, lengths):
        return [self.read()[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def write(self, content: bytes) -> None:
        step(str(self))
        OBJECTS[str(self)] = content

    def create(self, content: bytes) -> bool:
        if str(self) in OBJECTS:
            return False
        self.write(content)
        return True

    def upload(self, file) -> None:
        self.write(file.read_bytes())

    def unlink(self, missing_ok: bool = False) -> None:
        if str(self) in OBJECTS or not missing_ok:
            self.read()
            step(f"- {self}")
            del OBJECTS[str(self)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    return extract(tiny_backbone(), tiny_samples(), out=out, **OPTIONS)


@pytest.fixture(autouse=True)
def empty():
    OBJECTS.clear()
    STEPS.clear()
    LAST[0] = 10**9


def write(**options):
    STEPS.clear()
    return extract(tiny_backbone(), tiny_samples(), out="memory://here/c.zarr", **OPTIONS, **options)


def require_same(cache, whole):
    """The objects are the files of a local extraction, and no other (a file system keeps an empty lock file, too)."""
    for here, there in ((cache.path, whole.path), (cache.receipts, whole.receipts)):
        found = {name: hashlib.sha256((here / name).read()).hexdigest() for name, _ in here.scan()}
        assert found == {name: digest for name, digest in contents(there).items() if name != "lock"}


def test_one_class_is_a_store(whole, tmp_path):
    cache = write()
    assert isinstance(cache.path, MemoryPath)
    assert cache.remote
    require_same(cache, whole)
    assert verify_cache("memory://here/c.zarr")["intact"]
    runs = [
        lc.train(place, out=tmp_path / name, rank=2, epochs=1, batch_size=8, device="cpu")
        for name, place in (("memory", "memory://here/c.zarr"), ("disk", whole.path))
    ]
    assert runs[0].metrics["val_loss"] == runs[1].metrics["val_loss"]
    assert runs[0].metrics["train_loss"] == runs[1].metrics["train_loss"]


def test_what_is_damaged_there_is_mended(whole):
    cache = write()
    shard, label = cache.shard_path(2), cache.path / "labels/c/0"
    OBJECTS[str(shard)] = OBJECTS[str(shard)][:40] + b"?" + OBJECTS[str(shard)][41:]
    OBJECTS[str(label)] = b"other"
    found = verify_cache(cache.path, repair=True, backbone=tiny_backbone(), dataset=tiny_samples())
    assert (found["repaired"], found["intact"]) == (True, True)
    require_same(cache, whole)


def test_bytes_come_before_the_list_and_the_receipt_last(whole):
    write()
    shards = [name for name in STEPS if "/c.zarr/activations/block/c." in name]
    assert len(shards) == whole.layout.shards
    for number in range(whole.layout.shards):
        bytes_, sums, receipt = (
            STEPS.index(f"memory://here/{name}")
            for name in (
                f"c.zarr/activations/block/c.{number}.0.0.0",
                f"c.zarr.receipts/checksums/{number:06d}.crc32c",
                f"c.zarr.receipts/{number:06d}.json",
            )
        )
        assert bytes_ < sums < receipt
    store = [at for at, name in enumerate(STEPS) if name.startswith("memory://here/c.zarr/")]
    first = {name: at for at, name in reversed(list(enumerate(STEPS)))}
    assert max(at for name, at in first.items() if "receipts/core/" in name) < store[0]  # the copy before the store
    assert STEPS[store[-1]] == "memory://here/c.zarr/zarr.json"  # what says that the cache is complete comes last
    assert store[-1] > max(at for at, name in enumerate(STEPS) if "c.zarr.receipts/0" in name)


def test_a_writer_killed_at_any_step_goes_on_to_the_same_bytes(whole):
    write()
    count = len(STEPS)
    for last in range(1, count + 1, 17):
        OBJECTS.clear()
        LAST[0] = last
        with pytest.raises(KilledError):
            write()
        LAST[0] = 10**9
        done = sum("receipts/0" in name for name in OBJECTS)
        meter = Meter()
        cache = write(meter=meter)
        assert meter.images <= len(whole.ids) - 5 * max(0, done - 1)  # no shard that was done is computed again
        require_same(cache, whole)


def test_a_url_of_no_store_names_those_that_there_are():
    with pytest.raises(UserError, match=r"URLs of ftp:// cannot be opened: give a path or one of .*s3://.*memory://"):
        locate("ftp://host/c.zarr")


def test_a_path_is_a_place_and_stays_a_path(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there", target_is_directory=True)
    (tmp_path / "there").mkdir()
    place = locate(tmp_path / "link" / "c.zarr")
    assert isinstance(place, LocalPath)
    assert isinstance(place, StorePath)
    assert place == tmp_path / "there" / "c.zarr" == place.on_disk
    assert receipts_of(place) == tmp_path / "there" / "c.zarr.receipts"
    file = place / "labels"
    with pytest.raises(FileNotFoundError):
        file.read()
    place.mkdir()
    file.write(b"one")
    inode = file.stat().st_ino
    file.write(b"two")
    assert file.read() == b"two"
    assert file.stat().st_ino != inode  # replaced, not overwritten
    assert dict(place.scan()) == {"labels": 3}
    with pytest.raises(FileNotFoundError):  # no more than its own folder is made
        (place / "gone" / "a" / "b").write(b"")


def test_target_sets_come_copy_first_and_root_last_and_go_without_a_trace(whole):
    cache = write()
    bare = dict(OBJECTS)
    counts = TargetSet("count", NUMBERS, ["x"], np.arange(23, dtype=np.float32)[:, None])
    STEPS.clear()
    lc.add_targets("memory://here/c.zarr", counts)
    written = [name for name in STEPS if "/lock" not in name]
    first = next(at for at, name in enumerate(written) if "c.zarr.receipts/" not in name)
    assert written[first - 1].endswith("core/files.json")
    assert written[-1] == "memory://here/c.zarr/zarr.json"
    assert {name.rpartition("c.zarr/")[2] for name in written[first:]} == {
        *("targets/zarr.json", "targets/count/zarr.json", "targets/count/c/0/0", "zarr.json")
    }
    np.testing.assert_array_equal(lc.open_cache("memory://here/c.zarr").target_set("count").values, counts.values)
    assert verify_cache(cache.path)["intact"]
    steps, added = len(STEPS), dict(OBJECTS)
    for last in range(2, steps, 7):
        OBJECTS.clear()
        OBJECTS.update(bare)
        STEPS.clear()
        LAST[0] = last
        with pytest.raises(KilledError):
            lc.add_targets("memory://here/c.zarr", counts)
        LAST[0] = 10**9
        lc.add_targets("memory://here/c.zarr", counts)
        assert added == OBJECTS
    lc.remove_targets("memory://here/c.zarr", "count")
    assert bare == OBJECTS


def test_processes_share_a_cache_of_objects_and_write_what_one_would(whole, monkeypatch):
    """Here threads, for these objects are this process's; each has its own claims and scratch folder."""
    monkeypatch.setattr("losa_cache.cache.members.PAUSE", 0.01)
    monkeypatch.setattr(share, "PAUSE", 0.01)
    meters, backbones = [Meter() for _ in range(3)], [tiny_backbone() for _ in range(3)]  # the seed is the process's

    def extract_part(backbone, meter):
        return extract(backbone, tiny_samples(), out="memory://here/c.zarr", part="auto", meter=meter, **OPTIONS)

    with ThreadPoolExecutor(3) as threads:
        caches = list(threads.map(extract_part, backbones, meters))
    assert sum(meter.images for meter in meters) == len(whole.ids)
    for cache in caches:
        require_same(cache, whole)


def test_a_claim_is_asked_for_before_an_upload_and_before_the_receipt(whole):
    write()
    OBJECTS.clear()
    asked = []

    class Losing(Claims):
        def has(self, shard):
            asked.append(shard)
            return shard != 2 and asked.count(shard) < 2 if shard < 3 else super().has(shard)

    place = locate("memory://here/c.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("losa_cache.cache.object_lock.Claims", Losing)
        write(part="1/2")
    done = [name for name in OBJECTS if name.startswith(f"{receipts_of(place)}/0")]
    assert not any(f"00000{shard}.json" in name for shard in range(3) for name in done)
    assert str(place / "activations/block/c.2.0.0.0") not in OBJECTS
    require_same(write(), whole)


def test_the_sign_of_those_who_share_keeps_others_out_until_they_have_gone(monkeypatch):
    monkeypatch.setattr("losa_cache.cache.members.STALE", 0.2)
    monkeypatch.setattr("losa_cache.cache.members.PAUSE", 0.01)
    place = locate("memory://here/c.zarr")
    one, two = place.lock(shared=True), place.lock(shared=True)
    with pytest.raises(UserError, match="another process is writing"):  # by the lock of this machine
        place.lock()
    monkeypatch.setenv("LOSA_CACHE_HOME", "elsewhere-1")
    sign = receipts_of(place) / "lock"
    before = sign.read()
    with pytest.raises(UserError, match="other processes are writing the cache .* together: wait .* --part auto"):
        Sign(place, "another").alone()
    assert json.loads(sign.read())["shared"]
    one.close()
    assert sign.is_file()
    member = two.claims.file(two.claims.token)
    two.claims._left.set()  # it is killed: its file stays, as one of another machine
    dead = json.loads(member.read())
    dead["process"]["namespace"] = "another"
    member.write(json.dumps(dead).encode())
    Sign(place, "another").alone()
    assert json.loads(sign.read())["token"] == "another"
    with pytest.raises(UserError, match=r"another process is writing .* delete 'memory://here/c\.zarr\.receipts/lock'"):
        Sign(place, "a third").share()
    assert before != sign.read()
    two.close()


def test_http_servers_are_not_shared():
    with pytest.raises(UserError, match="an HTTP server cannot say which of several processes was first"):
        locate("http://127.0.0.1:1/c.zarr").lock(shared=True)
