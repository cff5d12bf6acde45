"""Extractions to servers: the bytes of a local one, whatever happens on the way."""

import hashlib
import json
import signal
import time

import pytest

from losa_cache.cache.storage import receipts_of
from losa_cache.cache.stores.remote import RemotePath
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan_extraction import plan_extraction
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked
from tests.servers import BUCKET, http_server

OPTIONS = {"precision": "int8", "shard_bytes": 2_500, "batch_size": 4, "workers": 1}
IMAGES, SHARDS = 30, 10
CHILD = """
import time
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter

class Slow(Meter):
    def update(self):
        super().update()
        time.sleep({pause})

extract(tiny_backbone(), tiny_samples({images}), out={out!r}, meter=Slow(), **{options!r})
"""


pytestmark = pytest.mark.usefixtures("s3_environment")


@pytest.fixture
def url(request):
    return f"s3://{BUCKET}/{request.node.name}/c.zarr"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    return extract(tiny_backbone(), tiny_samples(IMAGES), out=out, **OPTIONS)


def on_server(path):
    """Hash of every object below a place, by name."""
    return {name: hashlib.sha256((path / name).read()).hexdigest() for name in path.names()}


def require_same(url, whole):
    """The objects are the files of a local extraction, and no other (a file system keeps an empty lock file, too)."""
    store = RemotePath.parse(url)
    assert on_server(store) == contents(whole.path)
    assert on_server(receipts_of(store)) == {n: h for n, h in contents(whole.receipts).items() if n != "lock"}


def again(url, images=IMAGES):
    meter = Meter()
    extract(tiny_backbone(), tiny_samples(images), out=url, meter=meter, **OPTIONS)
    return meter.images


def start(url, pause):
    return Forked("-c", CHILD.format(pause=pause, images=IMAGES, out=url, options=OPTIONS))


def receipts(url):
    return [name for name in receipts_of(RemotePath.parse(url)).names() if name[0] == "0"]


def test_an_extraction_to_s3_writes_the_bytes_of_a_local_one(url, whole, tmp_path):
    cache = extract(tiny_backbone(), tiny_samples(IMAGES), out=url, **OPTIONS)
    assert str(cache.path) == url
    assert cache.manifest == whole.manifest
    require_same(url, whole)
    assert again(url) == 0
    left = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert {p.name for p in left} == {"lock", "token"}  # nothing is kept here, and no server's cache is listed


@pytest.mark.slow
def test_killed_again_and_again_only_what_lacks_is_uploaded(url, whole):
    before = []
    for shards in (0, 5):
        process = start(url, pause=0.05)
        while len(receipts(url)) <= shards:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = receipts(url)
        assert set(before) <= set(now)
        assert len(now) < SHARDS
        before = now
    assert again(url) == IMAGES - 3 * len(before)
    require_same(url, whole)
    assert verify_cache(url)["intact"]


@pytest.mark.parametrize("lost", ["receipt", "shard", "cut shard", "core", "copy"])
@pytest.mark.slow
def test_what_is_lost_is_written_again_and_comes_out_the_same(url, whole, lost):
    cache = extract(tiny_backbone(), tiny_samples(IMAGES), out=url, **OPTIONS)
    shard = cache.shard_path(3)
    if lost == "cut shard":
        shard.write(shard.read()[:-1])
    else:
        place = {"receipt": cache.receipts / "000003.json", "shard": shard}
        (place | {"core": cache.path / "labels/c/0", "copy": cache.receipts / "core/zarr.json"})[lost].unlink()
    assert again(url) == (0 if lost in ("core", "copy") else 3)
    require_same(url, whole)


def test_a_file_of_the_core_that_is_lost_in_both_is_named(url):
    cache = extract(tiny_backbone(), tiny_samples(IMAGES), out=url, **OPTIONS)
    for place in (cache.path, cache.receipts / "core"):
        (place / "labels/c/0").unlink()
    with pytest.raises(
        UserError, match=f"labels/c/0 of '{url}' is damaged, and its copy in '{url}.receipts/core', too"
    ):
        again(url)


def test_another_identity_is_refused_and_so_is_what_is_no_cache(url):
    extract(tiny_backbone(), tiny_samples(IMAGES), out=url, **OPTIONS)
    with pytest.raises(UserError, match=r"holds another cache: it differs in .*dataset\.fingerprint"):
        again(url, images=20)
    other = RemotePath.parse(url).with_name("photos")
    (other / "one.jpg").write(b"mine")
    with pytest.raises(UserError, match="exists and is no cache"):
        again(str(other))
    assert other.names() == {"one.jpg": 4}


def test_a_second_writer_is_refused_and_the_lock_of_a_dead_one_is_taken_over(url, tmp_path, monkeypatch):
    process = start(url, pause=0.5)
    while not receipts(url):
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is writing"):  # by the lock of this machine
        again(url)
    monkeypatch.setenv("LOSA_CACHE_HOME", str(tmp_path / "elsewhere"))
    owner = json.loads((receipts_of(RemotePath.parse(url)) / "lock").read())
    assert owner["process"] == process.pid
    refused = rf"on {owner['host']}, process {process.pid}, since .* UTC\).*delete 's3://.*c\.zarr\.receipts/lock'"
    with pytest.raises(UserError, match=refused):  # by the object on the server
        again(url)
    process.kill()
    process.wait()
    with pytest.raises(UserError, match=refused):  # another machine cannot know that it is dead
        again(url)
    monkeypatch.setenv("LOSA_CACHE_HOME", str(tmp_path / "home"))
    assert again(url) > 0


@pytest.mark.slow
def test_processes_share_an_extraction_to_s3_and_a_killed_one_costs_what_it_had_in_flight(url, whole):
    """Takes about 10 s."""
    shared = OPTIONS | {"part": "auto"}
    code = CHILD.format(pause=0.05, images=IMAGES, out=url, options=shared)
    processes = [Forked("-c", code) for _ in range(3)]
    while len(receipts(url)) < 2:
        time.sleep(0.01)
    processes[0].kill()
    for process in processes:
        process.wait()
    assert [process.returncode for process in processes[1:]] == [0, 0]
    require_same(url, whole)


@pytest.mark.slow
def test_repair_on_s3_computes_only_what_is_damaged(url, whole):
    cache = extract(tiny_backbone(), tiny_samples(IMAGES), out=url, **OPTIONS)
    shard = cache.shard_path(3)
    good = shard.read()
    shard.write(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    (cache.receipts / "000007.json").unlink()
    (cache.path / "labels/c/0").write(b"other")
    found = verify_cache(url, repair=True, backbone=tiny_backbone(), dataset=tiny_samples(IMAGES))
    assert (found["repaired"], found["intact"]) == (True, True)
    assert [part["samples"] for part in found["damaged"]["shards"]] == [1, 3]
    require_same(url, whole)


def test_over_http_with_put(tmp_path, whole):
    (tmp_path / "served").mkdir()
    with http_server(tmp_path / "served", put=1) as address:
        extract(tiny_backbone(), tiny_samples(IMAGES), out=f"{address}/c.zarr", **OPTIONS)
        assert again(f"{address}/c.zarr") == 0
        assert contents(tmp_path / "served" / "c.zarr") == contents(whole.path)
        assert verify_cache(f"{address}/c.zarr")["intact"]


def test_http_without_put_is_a_sentence(tmp_path):
    with (
        http_server(tmp_path) as address,
        pytest.raises(UserError, match=r"cannot be written \(405 Method Not Allowed\)"),
    ):
        again(f"{address}/c.zarr")


def test_a_bucket_that_is_not_there_is_a_sentence():
    with pytest.raises(
        UserError, match=r"'s3://no-such-bucket/c.zarr.*' cannot be written \(there is no such bucket\)"
    ):
        again("s3://no-such-bucket/c.zarr")


def test_plan_measures_no_server(url):
    with pytest.raises(UserError, match=f"leave --out '{url}' out"):
        plan_extraction("vit_digits", "digits", out=url)
