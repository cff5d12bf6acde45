"""An extraction on a cluster against the same extraction by one process."""

import os
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import losa_cache as lc
from losa_cache.cache.location import locate
from losa_cache.cluster import connect
from losa_cache.cluster.software import Software
from losa_cache.errors import UserError
from losa_cache.extract import at_worker
from losa_cache.extract.meter import Meter
from tests.conftest import tiny_backbone, tiny_samples

GIVEN = {"backbone": "vit_digits", "dataset": "digits", "split": "test", "limit": 60, "batch_size": 8}
SMALL = 400_000  # bytes of a shard


def content(path):
    """The bytes of every file of a cache that holds no time."""
    files = [
        file for folder in (path / "activations", path.with_name(path.name + ".receipts")) for file in folder.rglob("*")
    ]
    return {
        os.path.relpath(file, path): file.read_bytes()
        for file in files
        if file.is_file() and "claims" not in file.parts
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes."""
    return lc.extract(**GIVEN, out=tmp_path_factory.mktemp("alone") / "c.zarr", shard_bytes=SMALL)


def test_a_cluster_writes_the_bits_of_one_process(alone, tmp_path, scheduler):
    meter = Meter()
    cache = lc.extract(**GIVEN, out=tmp_path / "c.zarr", shard_bytes=SMALL, scheduler=scheduler, meter=meter)
    assert cache.layout.shards > 4
    assert content(cache.path) == content(alone.path)
    assert (cache.manifest.identity, cache.layout) == (alone.manifest.identity, alone.layout)
    assert meter.images == meter.total == 60
    lc.extract(**GIVEN, out=tmp_path / "c.zarr", shard_bytes=SMALL)  # no worker has its lock any more


def test_a_worker_that_would_compute_other_numbers_is_refused_by_name(alone, tmp_path, scheduler, monkeypatch, caplog):
    """One has other weights; one has a torch of another version."""
    from distributed import get_worker

    opened, software = at_worker.Extraction.open, Software.here()
    own = {"limit": 24}

    def other_weights(config, home):
        return opened(replace(config, weights="random") if get_worker().name == 1 else config, home)

    def other_torch(_=None):
        older = Software(software.code, {**software.versions, "torch": "1.0"})
        return (
            older if threading.current_thread() is not threading.main_thread() and get_worker().name == 2 else software
        )

    monkeypatch.setattr(at_worker.Extraction, "open", other_weights)
    cache = lc.extract(**GIVEN | own, out=tmp_path / "c.zarr", scheduler=scheduler)
    assert re.search(r"worker tcp://\S+ gets no work: it would compute other numbers: backbone.weights \(", caplog.text)
    assert cache.manifest.fields["backbone"] == alone.manifest.fields["backbone"]
    monkeypatch.setattr(at_worker.Extraction, "open", opened)
    monkeypatch.setattr(Software, "here", other_torch)
    lc.extract(**GIVEN | own, out=tmp_path / "c.zarr", scheduler=scheduler)
    assert f"it has torch 1.0, not {software.versions['torch']}: install that version there." in caplog.text
    monkeypatch.setattr(Software, "here", lambda: Software("abc", software.versions) if in_worker() else software)
    with pytest.raises(
        UserError, match=r"no worker of 'tcp://\S+' can do this: tcp://\S+: the modules of its losa-cache"
    ):
        lc.extract(**GIVEN | own, out=tmp_path / "c.zarr", scheduler=scheduler)


def in_worker():
    return threading.current_thread() is not threading.main_thread()


@pytest.mark.slow
def test_what_fails_is_told_and_the_rest_is_finished(tmp_path, scheduler):
    rng = np.random.default_rng(0)
    for number in range(20):
        file = tmp_path / f"images/train/{'ab'[number % 2]}/{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    (tmp_path / "images/train/b/07.png").write_bytes(b"torn")
    given = {"backbone": "vit_digits", "dataset": "folder", "data_dir": str(tmp_path / "images"), "batch_size": 2}
    given |= {"out": tmp_path / "c.zarr", "shard_bytes": 30_000}
    with pytest.raises(UserError) as failed:
        lc.extract(**given, scheduler=scheduler)
    assert re.match(r"2 images of units \d were not extracted; all others were\. Unit \d on tcp://", str(failed.value))
    assert str(failed.value).count("image 'b/07.png' does not decode") == 3
    cache = lc.open_cache(tmp_path / "c.zarr", incomplete=True)
    assert len([*cache.path.rglob("activations/*/c.*")]) == cache.layout.shards - 2  # a unit of two
    assert not (cache.receipts / "cluster").exists()  # the mark of a command that failed
    cache = lc.extract(**given, on_error="skip", scheduler=scheduler)
    assert [entry["id"] for entry in cache.manifest.skipped] == ["b/07.png"]
    alone = lc.extract(**given | {"out": tmp_path / "alone.zarr"}, on_error="skip")
    assert content(cache.path)["activations/block/c.0.0.0.0"] == content(alone.path)["activations/block/c.0.0.0.0"]


def test_bad_options_are_refused_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "SECONDS", 0.5)
    out = tmp_path / "c.zarr"
    with pytest.raises(UserError, match="no dask scheduler answers at 'tcp://127.0.0.1:9'"):
        lc.extract(**GIVEN, out=out, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="--scheduler shares the work out itself: leave out --part"):
        lc.extract(**GIVEN, out=out, part="auto", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="--scheduler needs the backbone and the data set by name"):
        lc.extract("vit_digits", tiny_samples(), out=out, scheduler="tcp://127.0.0.1:9")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_place_is_refused_before_it_writes(
    alone, tmp_path, scheduler, monkeypatch, caplog
):
    from distributed import get_worker

    mark, elsewhere = at_worker.mark_of, tmp_path / "elsewhere/c.zarr"

    def mark_of(path):
        return mark(locate(elsewhere) if in_worker() and get_worker().name == 1 else path)

    monkeypatch.setattr(at_worker, "mark_of", mark_of)
    monkeypatch.setattr(at_worker, "MARK_SECONDS", 0.3)
    cache = lc.extract(**GIVEN, out=tmp_path / "c.zarr", shard_bytes=SMALL, scheduler=scheduler)
    assert re.search(r"worker tcp://\S+ gets no work: it does not see '\S+c.zarr.receipts' as the command", caplog.text)
    assert content(cache.path) == content(alone.path)
    assert not elsewhere.parent.exists()


def test_a_mark_that_a_network_file_system_shows_late_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(at_worker, "LOOK_SECONDS", 0.001)
    path = locate(tmp_path / "c.zarr")
    (tmp_path / "c.zarr.receipts").mkdir()
    threading.Timer(0.1, at_worker.mark_of(path).write, (b"this one",)).start()
    assert at_worker._sees_mark(path, "this one")


def test_the_mark_of_a_killed_command_goes_with_the_next_one(tmp_path):
    given = {"out": tmp_path / "c.zarr", "precision": "int8"}
    for part in (None, "auto"):
        (tmp_path / "c.zarr.receipts").mkdir(exist_ok=True)
        at_worker.mark_of(locate(tmp_path / "c.zarr")).write(b"killed")
        cache = lc.extract(tiny_backbone(), tiny_samples(3), **given, part=part)
        assert not (cache.receipts / "cluster").exists()
