"""Extraction end to end on a tiny backbone: order, resume, refusal, and images that do not decode."""

import errno
import hashlib
import re
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
import zarr

from losa_cache.cache import local_lock
from losa_cache.cache.shard import ShardWriter
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import batches
from tests.conftest import tiny_backbone, tiny_samples
from tests.forked import Forked

SMALL = {"precision": "float32", "shard_bytes": 13_000, "batch_size": 4}


def contents(store):
    """Hash of every file of a store by name."""
    return {
        str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in store.rglob("*") if p.is_file()
    }


def test_samples_are_shuffled_once_by_the_seed_and_ids_say_how(tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples()
    a, b, c = (
        extract(backbone, samples, seed=seed, out=tmp_path / f"{i}.zarr", **SMALL) for i, seed in enumerate((0, 0, 1))
    )
    assert sorted(a.ids) == list(samples.ids)
    assert a.ids != list(samples.ids)
    assert a.ids == b.ids != c.ids
    assert contents(a.path) == contents(b.path)


def test_layers_and_limit(tmp_path):
    cache = extract(tiny_backbone(), tiny_samples(), layers=2, limit=7, out=tmp_path / "c.zarr", **SMALL)
    assert cache.manifest.layers == [2, 4]
    assert cache.layout.shape == (7, 2, 5, 32)
    whole = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "d.zarr", **SMALL)
    assert cache.ids == whole.ids[:7]
    ours, theirs = (zarr.open_array(str(c.path / "activations/block"))[:7] for c in (cache, whole))
    assert np.array_equal(ours, theirs[:, [1, 3]])


def test_the_same_again_is_reused_without_a_forward_pass(tiny_cache, monkeypatch):
    before = contents(tiny_cache.path)
    backbone = tiny_backbone()
    monkeypatch.setattr(backbone, "run", None)
    again = extract(backbone, tiny_samples(), precision="float32", out=tiny_cache.path, shard_bytes=13_000)
    assert contents(again.path) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"backbone": tiny_backbone(seed=1)}, "backbone.name"),
        ({"layers": 2}, "layers"),
        ({"tap": "mlp"}, "tap"),
        ({"embedding": True}, "embedding"),
        ({"tokens": "pooled"}, "tokens (pooled asked for, all in that cache)"),
        ({"precision": "float16"}, "precision"),
        ({"seed": 5}, "sampling.seed"),
        ({"dataset": tiny_samples(22)}, "dataset.fingerprint"),
    ],
)
def test_another_identity_is_refused_by_the_fields_that_differ(tiny_cache, change, field):
    arguments = {"backbone": tiny_backbone(), "dataset": tiny_samples(), "precision": "float32"} | change
    before = contents(tiny_cache.path)
    with pytest.raises(UserError, match=rf"holds another cache: it differs in .*{re.escape(field)}"):
        extract(**arguments, out=tiny_cache.path)
    assert contents(tiny_cache.path) == before


def test_batches_lie_on_one_grid_whatever_is_missing(tiny_cache):
    layout = tiny_cache.layout
    whole = batches(layout, range(layout.samples), 4)
    assert [row for rows, _ in whole for row in rows] == list(range(layout.samples))
    part = batches(layout, [*layout.rows(1), *layout.rows(3)], 4)
    assert {rows for rows, _ in part} <= {rows for rows, _ in whole}
    assert sorted(row for _, keep in part for row in keep) == [*layout.rows(1), *layout.rows(3)]


@pytest.mark.parametrize("lost", ["receipt", "shard", "cut shard"])
def test_only_lost_shards_are_written_again_and_come_out_the_same(tiny_cache, lost):
    before = contents(tiny_cache.path)
    receipts = tiny_cache.path.with_name("tiny.zarr.receipts")
    if lost == "receipt":
        (receipts / "000002.json").unlink()
    elif lost == "shard":
        tiny_cache.shard_path(2).unlink()
    else:
        tiny_cache.shard_path(2).write_bytes(tiny_cache.shard_path(2).read_bytes()[:-1])
    meter = Meter()
    extract(tiny_backbone(), tiny_samples(), precision="float32", out=tiny_cache.path, meter=meter)
    assert meter.images == len(tiny_cache.layout.rows(2))
    assert contents(tiny_cache.path) == before


SLOW = """
import time
from tests.conftest import tiny_backbone, tiny_samples
from tests.forked import Forked
from losa_cache.extract.extract import extract
backbone = tiny_backbone()
forward = backbone.run
backbone.run = lambda *a, **k: (time.sleep({pause}), forward(*a, **k))[1]
extract(backbone, tiny_samples(), out={out!r}, precision="float32", shard_bytes=13_000, batch_size=4, **{options!r})
"""


PLAIN, VIEWS = "plain, decoded by threads", "views, decoded by processes"
ROADS = {PLAIN: {}, VIEWS: {"views": 2, "augment": "crop"}}


def start_slow(out, options, pause=0.05):
    code = SLOW.format(out=str(out), pause=pause, options=options)
    return Forked("-c", code)


@pytest.mark.parametrize(
    ("road", "after"),
    [
        (PLAIN, 3),
        (VIEWS, 1),
        pytest.param(PLAIN, 1, marks=pytest.mark.slow),
        pytest.param(VIEWS, 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_extraction_resumes_bit_identically(tmp_path, after, road):
    out, options = tmp_path / "killed.zarr", ROADS[road]
    process = start_slow(out, options)
    receipts = tmp_path / "killed.zarr.receipts"
    while len(list(receipts.glob("0*.json"))) < after:
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="incomplete"):
        open_cache(out)
    meter = Meter()
    extract(tiny_backbone(), tiny_samples(), precision="float32", out=out, batch_size=4, meter=meter, **options)
    assert 0 < meter.images < 23 * options.get("views", 1)
    whole = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "whole.zarr", **SMALL, **options)
    assert contents(out) == contents(whole.path)


@pytest.mark.parametrize("road", [PLAIN, pytest.param(VIEWS, marks=pytest.mark.slow)])
def test_a_second_writer_is_refused_and_the_lock_dies_with_its_owner(tmp_path, road):
    out, options = tmp_path / "c.zarr", ROADS[road]
    process = start_slow(out, options, pause=1.0)
    while not list((tmp_path / "c.zarr.receipts").glob("0*.json")):
        time.sleep(0.002)
    with pytest.raises(UserError, match="another process is writing"):
        extract(tiny_backbone(), tiny_samples(), out=out, **SMALL, **options)
    process.kill()
    process.wait()
    assert extract(tiny_backbone(), tiny_samples(), out=out, **SMALL, **options).manifest.complete


def test_an_image_that_does_not_decode_stops_with_its_name(tmp_path):
    with pytest.raises(UserError, match=r"image 'image-004' does not decode \(OSError: .*truncated\).*--on-error skip"):
        extract(tiny_backbone(), tiny_samples(bad=(4,)), out=tmp_path / "c.zarr", **SMALL)


def test_skipped_images_are_listed_read_as_nan_and_leave_the_others_alone(tmp_path, tiny_cache):
    cache = extract(tiny_backbone(), tiny_samples(bad=(4, 20)), on_error="skip", out=tmp_path / "c.zarr", **SMALL)
    assert sorted(entry["id"] for entry in cache.manifest.skipped) == ["image-004", "image-020"]
    rows = [entry["row"] for entry in cache.manifest.skipped]
    assert (cache.labels[rows] == -1).all()
    assert len(cache.samples) == 21
    ours, whole = (zarr.open_array(str(c.path / "activations/block"))[:] for c in (cache, tiny_cache))
    assert np.isnan(ours[rows]).all()
    rest = np.setdiff1d(np.arange(23), rows)
    np.testing.assert_allclose(ours[rest], whole[rest], rtol=1e-5, atol=1e-6)


def test_all_images_bad_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none of the 3 images could be decoded"):
        extract(tiny_backbone(), tiny_samples(3, bad=(0, 1, 2)), on_error="skip", out=tmp_path / "c.zarr", **SMALL)


def test_overflow_of_float16_is_counted_in_the_cache(tmp_path):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[2].mlp.fc2.bias[0] = 3e6
    cache = extract(
        backbone, tiny_samples(), precision="float16", out=tmp_path / "c.zarr", shard_bytes=7_000, batch_size=4
    )
    values = zarr.open_array(str(cache.path / "activations/block"))[:]
    assert cache.manifest.overflowed == (np.abs(values) == 65504).sum() == 2 * 23 * 5
    assert np.isfinite(values).all()
    (cache.receipts / "000001.json").unlink()  # a batch that is half there already is not counted twice
    again = extract(backbone, tiny_samples(), precision="float16", out=tmp_path / "c.zarr", batch_size=4)
    assert again.manifest.overflowed == cache.manifest.overflowed


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(local_lock.shutil, "disk_usage", lambda _: usage(0, 0, 10))
    with pytest.raises(UserError, match=r"needs \d+\.\d kB more, .* has \d+ B free"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", **SMALL)
    assert not (tmp_path / "c.zarr").exists()


def test_after_a_failed_write_no_later_batch_closes_the_gap(tmp_path, monkeypatch):
    """The queue holds more batches when one fails: the shard must not be finished without the lost rows."""
    append, failed = ShardWriter.append, []

    def fail_once(self, row, sample):
        if row == 1 and not failed:
            failed.append(row)
            time.sleep(0.3)  # the next batch is queued meanwhile
            raise OSError(errno.EIO, "Input/output error")
        append(self, row, sample)

    monkeypatch.setattr(ShardWriter, "append", fail_once)
    options = {"precision": "float32", "shard_bytes": 8_000, "batch_size": 1}
    with pytest.raises(UserError, match="Input/output error"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", **options)
    assert not list((tmp_path / "c.zarr.receipts").glob("*.json"))
    whole = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", **options)
    assert np.isfinite(zarr.open_array(str(whole.path / "activations/block"))[:]).all()


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("mine")
    with pytest.raises(UserError, match="exists and is no cache"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").read_text() == "mine"


def test_stores_that_share_a_stem_do_not_share_receipts(tmp_path):
    caches = [
        extract(tiny_backbone(), tiny_samples(split=s), out=tmp_path / f"run.{s}", **SMALL) for s in ("train", "test")
    ]
    for split, cache in zip(("train", "test"), caches, strict=True):
        meter = Meter()
        extract(tiny_backbone(), tiny_samples(split=split), out=cache.path, meter=meter, **SMALL)
        assert meter.images == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": -1}, "seed is -1: it must lie between 0 and"),
        ({"seed": 2**63}, "seed is 9223372036854775808: it must"),
        ({"on_error": "ignore"}, "choose stop or skip"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"layers": "9"}, "9 layers cannot be chosen: there are 4"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", **option)
