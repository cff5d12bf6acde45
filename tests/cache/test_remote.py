"""Caches on servers: moto's S3 and small HTTP servers, real processes all of them."""

import copy
import pickle
import shutil
import sys
import urllib.request

import numpy as np
import pytest
import torch

from losa_cache.cache import reader as reader_module
from losa_cache.cache.inspect import inspect_cache
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.store import open_cache
from losa_cache.cache.stores.remote import RemotePath
from losa_cache.cli import main
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples
from tests.servers import BUCKET, ENVIRONMENT, free_port, http_server, plain_http_server, s3_server, upload

pytestmark = pytest.mark.usefixtures("s3_environment")


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """A cache of 23 samples in int8, shards of five; and where it lies."""
    out = tmp_path_factory.mktemp("local") / "tiny.zarr"
    return extract(tiny_backbone(), tiny_samples(), precision="int8", out=out, shard_bytes=4_000, batch_size=4)


@pytest.fixture
def url(local, request):
    """The same cache on S3, with its receipts."""
    url = f"s3://{BUCKET}/{request.node.name}/tiny.zarr"
    upload(local.path, url)
    upload(local.receipts, url + ".receipts")
    return url


def everything(cache, **options):
    """Stored bytes of all points of all rows, in an order that goes to and fro."""
    rows = np.random.default_rng(0).permutation(len(cache.ids))
    shape = (len(rows), cache.layout.tokens, cache.layout.columns)
    targets = [torch.empty(shape, dtype=cache.precision.stored_dtype) for _ in cache.manifest.points]
    reader = BlockReader(cache, cache.manifest.points, **options)
    try:
        reader.read(rows, targets)
    finally:
        reader.close()
    return torch.stack(targets)


def require_same(cache, local):
    assert cache.remote
    assert not local.remote
    assert (cache.manifest, cache.layout, cache.ids) == (local.manifest, local.layout, local.ids)
    assert np.array_equal(cache.labels, local.labels)
    assert torch.equal(everything(cache), everything(local))
    ours, theirs = frozen_tail(cache).state_dict(), frozen_tail(local).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours.keys() == theirs.keys()
    assert torch.equal(cache.encoding().constants()["channel"], local.encoding().constants()["channel"])
    described, expected = inspect_cache(cache.path, full=True), inspect_cache(local.path, full=True)
    assert described.pop("path") == str(cache.path)
    expected.pop("path")
    assert described == expected


def test_a_cache_on_s3_is_the_local_one(url, local):
    require_same(open_cache(url), local)


def test_without_its_receipts_too(url, local):
    cache = open_cache(url)
    for name in cache.receipts.names():
        (cache.receipts / name).unlink()
    require_same(open_cache(url), local)


def test_a_cache_over_http_is_the_local_one(local):
    with http_server(local.path.parent) as address:
        require_same(open_cache(f"{address}/tiny.zarr"), local)


def test_many_requests_are_under_way_at_once(local):
    with http_server(local.path.parent, latency=0.1) as address:
        everything(open_cache(f"{address}/tiny.zarr"))
        assert int(urllib.request.urlopen(f"{address}/most").read()) >= 8


def test_large_samples_are_asked_for_by_few_at_a_time(local, monkeypatch):
    monkeypatch.setattr(reader_module, "UNDER_WAY", 1)
    with http_server(local.path.parent, latency=0.02) as address:
        everything(open_cache(f"{address}/tiny.zarr"))
        assert 1 < int(urllib.request.urlopen(f"{address}/most").read()) <= 4


def test_points_that_lie_together_are_one_request(url, local):
    asked = []

    class Counting:
        def __init__(self, store):
            self.store = store

        def get_ranges(self, key, *, starts, lengths):
            asked.append(len(starts))
            return self.store.get_ranges(key, starts=starts, lengths=lengths)

    cache = open_cache(url)
    source = cache.open_shard(0)
    source._path = RemotePath(source._path.root, source._path.key, Counting(source._path.store))
    buffers = [np.empty(10, np.uint8) for _ in range(4)]
    source.read([(0, 10, buffers[:1]), (10, 20, buffers[1:3]), (100, 10, buffers[3:])])
    assert asked == [2]
    raw = local.shard_path(0).read_bytes()
    assert b"".join(b.tobytes() for b in buffers) == raw[:30] + raw[100:110]


@pytest.mark.slow
def test_verify_checks_a_cache_on_s3(url, local):
    assert verify_cache(url)["intact"]
    path = open_cache(url).shard_path(2)
    good = path.read()
    path.write(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    (open_cache(url).path / "labels" / "c" / "0").write(b"other")
    found = verify_cache(url)
    assert [part["shard"] for part in found["damaged"]["shards"]] == [2]
    assert found["damaged"]["samples"] == [local.ids[10]]
    assert found["damaged"]["files"] == ["labels/c/0"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_object_is_an_error_that_names_sample_and_shard(url, local, damage):
    path = open_cache(url).shard_path(1)
    good = path.read()
    if damage == "gone":
        path.unlink()
    else:
        path.write(good[:60] + bytes([good[60] ^ 4]) + good[61:] if damage == "flipped" else good[: len(good) // 2])
    with pytest.raises(
        UserError, match=rf"sample '{local.ids[5]}' cannot be read from shard 1 of 's3://{BUCKET}/.*zarr'"
    ):
        cache = open_cache(url)
        BlockReader(cache, ["block.1"]).read(np.array([5]), [torch.empty(1, 5, 34, dtype=torch.uint8)])


@pytest.mark.parametrize("name", ["labels/c/0", "sample_ids/c/0/0", "tail/norm.weight/c/0", "scales/channel/c/0/0"])
def test_a_missing_file_of_the_core_is_never_zeros(url, name):
    (open_cache(url).path / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        cache = open_cache(url)
        frozen_tail(cache)
        cache.encoding()


@pytest.mark.parametrize(
    "name",
    [
        "tail/norm.bias/zarr.json",
        *(pytest.param(own, marks=pytest.mark.slow) for own in ("tail/zarr.json", "labels/zarr.json")),
    ],
)
def test_missing_metadata_is_a_sentence(url, name):
    (open_cache(url).path / name).unlink()
    with pytest.raises(UserError, match=r"cannot be (rebuilt|read)"):
        frozen_tail(open_cache(url))


def test_a_server_that_ignores_ranges_is_a_sentence(local):
    with plain_http_server(local.path.parent) as address:
        cache = open_cache(f"{address}/tiny.zarr")
        with pytest.raises(UserError, match=r"c\.\d\.0\.0\.0' cannot be read \(.*it ignores HTTP range requests\)\.$"):
            everything(cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": 1}, "cannot be read"),
        ({"status": 403}, r"\(403 Forbidden\)"),
        ({"status": 404}, "cannot be read from shard"),
    ],
    ids=str,
)
def test_a_server_that_fails_while_it_is_read_is_a_sentence(local, options, message):
    with http_server(local.path.parent, **options) as address:
        cache = open_cache(f"{address}/tiny.zarr")
        with pytest.raises(UserError, match=message):
            everything(cache)


def test_http_without_the_receipts_is_a_sentence(local, tmp_path):
    shutil.copytree(local.path, tmp_path / "tiny.zarr")
    with http_server(tmp_path) as address:
        cache = open_cache(f"{address}/tiny.zarr")
        with pytest.raises(UserError, match=r"put the \.receipts folder beside it"):
            cache.encoding()


def test_a_place_is_pickled_without_credentials(url):
    path = open_cache(url).path
    pickled = pickle.dumps(path / "zarr.json")
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
    assert ENVIRONMENT["AWS_ACCESS_KEY_ID"].encode() not in pickled
    again = copy.copy(path / "zarr.json")  # by what a pickle holds
    assert str(again) == f"{url}/zarr.json"
    assert again.read() == (path / "zarr.json").read()


def test_names_with_spaces_come_back_from_their_url(url):
    path = RemotePath.parse(f"s3://{BUCKET}/a folder/x y.zarr")
    (path / "z").write(b"here")
    assert str(path) == f"s3://{BUCKET}/a folder/x%20y.zarr"
    assert (RemotePath.parse(str(path)) / "z").read() == b"here"
    assert path.names() == {"z": 4}


SENTENCES = {
    "nothing there": (f"s3://{BUCKET}/nothing.zarr", "there is no cache at"),
    "no bucket": ("s3://no-such-bucket/x.zarr", "there is no such bucket"),
    "bucket alone": (f"s3://{BUCKET}", "names no cache: give s3://caches/NAME.zarr"),
    "a name with a slash": (f"s3://{BUCKET}/..%2fx.zarr", "names no cache"),
    "scheme": ("ftp://host/x.zarr", "URLs of ftp:// cannot be opened"),
    "password": ("https://me:hunter2@host/x.zarr", "carries a user name or a password"),
    "user": ("s3://hunter2@bucket/x.zarr", "carries a user name or a password"),
    "query": ("https://host/x.zarr?sig=hunter2", "carries a query or a fragment"),
    "refused": ("http://127.0.0.1:{free}/x.zarr", "the connection is refused"),
    "no host": ("http://no-such-host.invalid/x.zarr", "cannot be resolved"),
}


@pytest.mark.parametrize(
    "verb", ["train --cache {}", *(pytest.param(own, marks=pytest.mark.slow) for own in ("inspect {}", "verify {}"))]
)
@pytest.mark.parametrize(
    "case",
    [pytest.param(own, marks=[pytest.mark.slow] * (own == "no host")) for own in SENTENCES],  # which is waited for
)
def test_what_cannot_be_opened_is_one_sentence_and_exit_code_2(case, verb, monkeypatch, capsys):
    url, message = SENTENCES[case]
    require_sentence(verb.format(url.format(free=free_port())), message, monkeypatch, capsys)


def require_sentence(command, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["losa-cache", *command.split()])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    for secret in ("hunter2", *(ENVIRONMENT[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))):
        assert secret not in line
    assert not printed.out


def test_credentials_that_are_refused_are_a_sentence_without_them(monkeypatch, capsys):
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        require_sentence(f"inspect s3://{BUCKET}/x.zarr", "403 Forbidden, InvalidAccessKeyId", monkeypatch, capsys)


def test_plain_http_that_is_not_allowed_is_a_sentence(monkeypatch, capsys):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    require_sentence(f"inspect s3://{BUCKET}/x.zarr", "set AWS_ALLOW_HTTP=true", monkeypatch, capsys)


def test_without_obstore_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    require_sentence(f"inspect s3://{BUCKET}/x.zarr", "pip install 'losa-cache[remote]'", monkeypatch, capsys)
