"""Files that were replaced since they were extracted: found by content, whatever names, sizes and time stamps say."""

import hashlib
import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import losa_cache as lc
from losa_cache import sources
from losa_cache.data.load import load_samples
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from tests.conftest import tiny_backbone

CLASSES = ("Forest", "River")


def put(path, seed, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, **options)


def eurosat(root):
    for i in range(12):
        put(root / f"eurosat/2750/{CLASSES[i % 2]}/{i:02d}.png", i, compress_level=0)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_SETTLED", 0)  # files are as young as their test
    return eurosat(tmp_path / "data")


def make(root, out, name="eurosat", **options):
    options = {"precision": "float32", "shard_bytes": 13_000, "out": out} | options
    return extract(tiny_backbone(), load_samples(name, data_dir=root), **options)


def replace(path, *, stamps=False):
    """Write another picture of the same size into the same file."""
    before, content = path.stat(), path.read_bytes()
    put(path, 99, compress_level=0)
    assert path.stat().st_size == len(content)
    if stamps:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return content


def no_reading(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(sources.Source, "of", refuse)


@pytest.mark.parametrize("name", ["eurosat", "folder"])
@pytest.mark.parametrize("stamps", [False, True])
def test_a_replaced_file_of_the_same_size_is_found(root, tmp_path, name, stamps):
    where = root if name == "eurosat" else root / "eurosat/2750"
    cache = make(where, tmp_path / "a.zarr", name)
    assert make(where, tmp_path / "a.zarr", name).path == cache.path
    file = root / "eurosat/2750/River/05.png"
    content = replace(file, stamps=stamps)
    with pytest.raises(
        UserError, match=r"a.zarr' was extracted from other files: .*River/05.png'\) has another content"
    ):
        make(where, tmp_path / "a.zarr", name)
    file.write_bytes(content)
    make(where, tmp_path / "a.zarr", name)


def test_a_set_that_was_replaced_as_a_whole_is_found_and_extracted_to_another_place(root, tmp_path):
    make(root, tmp_path / "a.zarr")
    for file in (root / "eurosat").rglob("*.png"):
        file.unlink()
        put(file, 100 + int(file.stem))
    with pytest.raises(UserError, match="Choose another --out"):
        make(root, tmp_path / "a.zarr")
    fresh = make(root, tmp_path / "b.zarr")
    assert not np.array_equal(
        fresh.shard_path(0).read_bytes(), (tmp_path / "a.zarr/activations/block/c.0.0.0.0").read_bytes()
    )


def test_what_is_untouched_is_not_read_and_new_stamps_are_read_once(root, tmp_path, monkeypatch):
    make(root, tmp_path / "a.zarr")
    with monkeypatch.context() as within:
        no_reading(within)
        make(root, tmp_path / "a.zarr")
    moved = shutil.copytree(root, tmp_path / "moved")  # other inodes, and time stamps of now
    for file in moved.rglob("*.png"):
        os.utime(file)
    make(moved, tmp_path / "a.zarr")
    no_reading(monkeypatch)
    make(moved, tmp_path / "a.zarr")


def test_a_file_that_changed_a_moment_before_it_was_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    put(path, 0)
    assert not sources.Source.of(path).untouched(path)
    monkeypatch.setattr(sources, "_SETTLED", 0)
    found = sources.Source.of(path)
    assert found.untouched(path)
    os.utime(path)
    assert not found.untouched(path)
    assert sources.Source.of(tmp_path / "gone.png") == sources.Source(-1, 0, 0, 0, "")


class Stop(Meter):
    """Stops an extraction at a shard."""

    def update(self):
        if self.images >= 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("done", [True, False])
def test_an_interrupted_extraction_looks_at_the_files_of_what_is_done(root, tmp_path, done):
    with pytest.raises(KeyboardInterrupt):
        make(root, tmp_path / "a.zarr", batch_size=2, meter=Stop())
    finished = [int(path.name[:6]) for path in (tmp_path / "a.zarr.receipts").glob("0*.json")]
    assert finished
    samples = load_samples("eurosat", data_dir=root)
    order = np.random.default_rng(0).permutation(12)
    rows = json.loads((tmp_path / f"a.zarr.receipts/sources/{finished[0]:06d}.json").read_text())["size"]
    replace(samples.file(int(order[0 if done else -1])))
    assert len(rows) < 12
    if done:
        with pytest.raises(UserError, match="has another content now"):
            make(root, tmp_path / "a.zarr")
        return
    cache = make(root, tmp_path / "a.zarr", batch_size=2)
    whole = make(root, tmp_path / "b.zarr", batch_size=2)
    for shard in range(cache.layout.shards):
        assert cache.shard_path(shard).read_bytes() == whole.shard_path(shard).read_bytes()


def test_every_row_has_its_file(root, tmp_path):
    cache = make(root, tmp_path / "a.zarr", views=2, augment="crop")
    samples = load_samples("eurosat", data_dir=root)
    places = {name: i for i, name in enumerate(samples.ids)}
    found = []
    for shard in range(cache.layout.shards):
        found += json.loads((cache.receipts / f"sources/{shard:06d}.json").read_text())["digest"]
    files = [samples.file(places[name]) for name in cache.ids]
    assert found == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert len(found) == 24


def test_an_older_cache_is_reused_with_a_line(root, tmp_path, caplog):
    make(root, tmp_path / "a.zarr")
    for file in (tmp_path / "a.zarr.receipts/sources").iterdir():
        file.unlink()
    make(root, tmp_path / "a.zarr")
    assert "does not record the content of all its files" in caplog.text
    caplog.clear()
    (tmp_path / "a.zarr.receipts/sources/000000.json").write_text("damaged")
    make(root, tmp_path / "a.zarr")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_repair_does_not_mix_files(root, tmp_path):
    cache = lc.extract("vit_digits", "eurosat", data_dir=root, out=tmp_path / "a.zarr")
    shard = cache.shard_path(0)
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    file = root / "eurosat/2750/Forest/04.png"
    former = replace(file, stamps=True)
    with pytest.raises(UserError, match="04.png'.* has another content now"):
        lc.verify_cache(cache.path, repair=True)
    file.write_bytes(former)
    assert lc.verify_cache(cache.path, repair=True)["repaired"]


def test_a_mixed_run_does_not_mix_files(root, tmp_path):
    cache = lc.extract("vit_digits", "eurosat", data_dir=root, out=tmp_path / "a.zarr")
    online = lc.OnlineConfig("vit_digits", "eurosat", data_dir=str(root), share=0.5)
    lc.train(cache, online=online, epochs=1, out=tmp_path / "run")
    replace(root / "eurosat/2750/Forest/04.png")
    with pytest.raises(UserError, match="has another content now"):
        lc.train(cache, online=online, epochs=1, out=tmp_path / "again")


def test_pictures_in_memory_have_no_lists(tiny_cache):
    assert not (tiny_cache.receipts / "sources").exists()
