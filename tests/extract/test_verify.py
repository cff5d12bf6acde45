"""verify: any byte that changed is found and its samples named; repair brings the very bytes back."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import losa_cache as lc
from losa_cache import inputs
from losa_cache.cache import compression
from losa_cache.data.load import load_request, load_samples
from losa_cache.errors import UserError
from losa_cache.extract import recompute
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.verify import verify_cache
from losa_cache.train.training_data import frozen_tail
from tests.conftest import losa_cache, tiny_backbone, tiny_samples
from tests.extract.test_extract import contents

BAD = (4, 20)


@pytest.fixture(scope="module", params=["plain", "compressed"])
def original(request, tmp_path_factory):
    """What ``cache`` copies."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        patch.setattr(compression, "WORTH_BYTES", 0)
        patch.setattr(compression, "WORTH_RATIO", 2 if request.param == "compressed" else 0)
        options = {"precision": "int8", "shard_bytes": 4_000, "batch_size": 4, "on_error": "skip"}
        return extract(tiny_backbone(), tiny_samples(bad=BAD), out=folder / "c.zarr", **options)


@pytest.fixture
def cache(original, tmp_path):
    for folder in (original.path, original.receipts):
        shutil.copytree(folder, tmp_path / folder.name)
    return lc.open_cache(tmp_path / "c.zarr")


plain_alone = pytest.mark.parametrize("original", ["plain"], indirect=True)


def objects():
    return {"backbone": tiny_backbone(), "dataset": tiny_samples(bad=BAD)}


def files(cache):
    return [p for folder in (cache.path, cache.receipts) for p in folder.rglob("*") if p.is_file() and p.name != "lock"]


def flip(path, at, by):
    content = bytearray(path.read_bytes())
    content[at] ^= by
    path.write_bytes(content)


def test_an_intact_cache_is_intact_with_every_sample_computed_again(cache):
    found = verify_cache(cache.path, recompute=100, **objects())
    assert found["intact"]
    assert found["damaged"] == {"files": [], "shards": [], "samples": []}
    compared = found["recomputed"]
    assert compared["rows"] == 21
    assert compared["wrong"] == []
    assert 0 < compared["largest_error"] < 0.03


@pytest.mark.slow
def test_any_flipped_byte_anywhere_is_found_and_the_damaged_samples_are_named(cache):
    before, pick = contents(cache.path), random.Random(0)
    flips = 0
    for path in files(cache):
        good = path.read_bytes()
        for at in sorted({0, len(good) - 1, *(pick.randrange(len(good)) for _ in range(4))}):
            flip(path, at, by=1 << pick.randrange(8))
            damaged = verify_cache(cache.path)["damaged"]
            if path.name.startswith("c."):
                shard = int(path.name.split(".")[1])
                assert [part["shard"] for part in damaged["shards"]] == [shard], (path, at)
                rows = cache.layout.rows(shard)
                assert set(damaged["samples"]) <= {cache.ids[row] for row in rows}
                in_index = at >= len(good) - cache.layout.index_bytes
                assert len(damaged["samples"]) == (len(rows) if in_index else 1)
            elif path.parent == cache.receipts:
                assert [part["shard"] for part in damaged["shards"]] == [int(path.stem)], (path, at)
            else:
                assert damaged["files"], (path, at)
            path.write_bytes(good)
            flips += 1
    assert flips > 200
    assert contents(cache.path) == before
    assert verify_cache(cache.path)["intact"]


@pytest.mark.parametrize("where", ["first sample", "last sample", "index", "cut", "gone", "another shard", "receipt"])
def test_repair_brings_the_very_bytes_back_and_computes_only_what_is_damaged(cache, where, monkeypatch):
    before = contents(cache.path), contents(cache.receipts)
    shard = cache.shard_path(2)
    if where == "first sample":
        flip(shard, 10, 1)
    elif where == "last sample":
        flip(shard, shard.stat().st_size - cache.layout.index_bytes - 10, 1)
    elif where == "index":
        flip(shard, shard.stat().st_size - 10, 1)
    elif where == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif where == "gone":
        shard.unlink()
    elif where == "another shard":
        shutil.copy(cache.shard_path(1), shard)
    else:
        (cache.receipts / "000002.json").unlink()
    computed = []
    monkeypatch.setattr(Meter, "update", lambda self: computed.append(self.images))
    found = verify_cache(cache.path, repair=True, **objects())
    assert found["intact"]
    assert found["repaired"]
    assert max(computed) == (1 if "sample" in where else len(cache.layout.rows(2)))
    assert (contents(cache.path), contents(cache.receipts)) == before


@plain_alone
def test_every_file_of_the_core_is_put_back_without_a_backbone(cache):
    before = contents(cache.path), contents(cache.receipts)
    core = [p for p in files(cache) if not p.name.startswith("c.") and p.parent != cache.receipts]
    assert len(core) > 20
    for path in core:
        for damage in (lambda p: flip(p, 3, 16), lambda p: p.unlink()):
            damage(path)
            found = verify_cache(cache.path, repair=True)
            assert found["damaged"]["files"], path
            assert found["repaired"], path
    assert (contents(cache.path), contents(cache.receipts)) == before


@plain_alone
def test_a_file_that_is_damaged_in_both_places_is_said_to_be_lost(cache):
    for folder in (cache.path, cache.metadata.copy):
        flip(folder / "labels" / "c" / "0", 3, 1)
    with pytest.raises(UserError, match=r"labels/c/0 of .* is damaged, and its copy .* too"):
        verify_cache(cache.path, repair=True)


def test_values_that_another_backbone_gave_are_found_by_recomputing(cache):
    """Checksums cannot know: a chunk that was wrong when it was written."""
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[3].mlp.fc2.bias += 0.5
    backbone.weights = tiny_backbone().weights  # a forger, or a bug
    found = verify_cache(cache.path, recompute=7, backbone=backbone, dataset=tiny_samples(bad=BAD))
    assert not found["intact"]
    assert len(found["recomputed"]["wrong"]) == 7
    with pytest.raises(UserError, match=r"extracted from something else: it differs in backbone\.name"):
        verify_cache(cache.path, recompute=1, backbone=tiny_backbone(seed=1), dataset=tiny_samples(bad=BAD))


@plain_alone
def test_what_cannot_be_verified_is_one_sentence(cache, tmp_path):
    with pytest.raises(UserError, match="extracted from loaded objects"):
        verify_cache(cache.path, recompute=1)
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=f"seed is {seed}: it must lie between 0 and"):
            verify_cache(cache.path, recompute=1, seed=seed)
    shutil.copytree(cache.path, tmp_path / "moved.zarr")
    shutil.rmtree(cache.metadata.copy / "labels")  # and what is left of a copy is made whole again
    assert verify_cache(cache.path, repair=True)["repaired"]
    with pytest.raises(UserError, match="no receipts to be checked against"):
        verify_cache(tmp_path / "moved.zarr")
    with pytest.raises(UserError, match="there is no cache at"):
        verify_cache(tmp_path / "nowhere.zarr")


@pytest.mark.slow
def test_the_command_line_finds_names_and_mends(digits, tmp_path):
    for name in ("test.zarr", "test.zarr.receipts"):
        shutil.copytree(digits["home"] / name, tmp_path / name)
    store = str(tmp_path / "test.zarr")
    cache = lc.open_cache(store)
    flip(cache.shard_path(0), 5000, 4)
    found = losa_cache("verify", store, "--json")
    assert found.returncode == 1, found.stderr
    (sample,) = json.loads(found.stdout)["damaged"]["samples"]
    assert sample == cache.ids[0]
    mended = losa_cache("verify", store, "--repair", "--recompute", "5", "--json")
    assert mended.returncode == 0, mended.stderr
    result = json.loads(mended.stdout)
    assert result["repaired"]
    assert result["recomputed"]["rows"] == 5
    assert result["recomputed"]["wrong"] == []
    assert contents(cache.path) == contents(digits["test"])


def test_images_are_found_again_from_another_folder(tmp_path, monkeypatch):
    for split, label in (("train", "a"), ("train", "b")):
        (tmp_path / "photos" / split / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    made = lc.extract("vit_digits", "photos", out="c.zarr", precision="int4")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = verify_cache(tmp_path / "c.zarr", recompute=6)
    assert found["intact"]
    assert found["recomputed"]["rows"] == made.layout.samples == 6
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="photos"):
        verify_cache(tmp_path / "c.zarr", recompute=6)


@pytest.fixture
def photos(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("named", ["by path", pytest.param("by data_dir", marks=pytest.mark.slow)])
def test_a_cache_from_elsewhere_does_not_say_what_is_opened(named, photos, tmp_path, monkeypatch):
    """Its options name a folder of this machine: only this user's own notes make them good."""
    source = {"dataset": str(photos)} if named == "by path" else {"dataset": "folder", "data_dir": photos}
    made = lc.extract("vit_digits", out=tmp_path / "mine.zarr", precision="int4", **source)
    assert verify_cache(made.path, recompute=6)["recomputed"]["rows"] == 6  # extracted here, by this user
    for name in ("zarr", "zarr.receipts"):
        shutil.copytree(tmp_path / f"mine.{name}", tmp_path / f"theirs.{name}")
    theirs = tmp_path / "theirs.zarr"
    opened = []
    monkeypatch.setattr(inputs, "load_request", lambda *a: opened.append(a) or load_request(*a))
    with pytest.raises(UserError, match=r"was not extracted by this user here.* --data-dir, the folder of its images"):
        verify_cache(theirs, recompute=6)
    assert not opened
    found = verify_cache(theirs, recompute=6, data_dir=photos)
    assert (found["intact"], found["recomputed"]["wrong"], len(opened)) == (True, [], 1)
    flip(lc.open_cache(theirs).shard_path(0), 10, 1)
    with pytest.raises(UserError, match="--data-dir"):
        verify_cache(theirs, repair=True)
    assert verify_cache(theirs, repair=True, data_dir=photos)["repaired"]
    with pytest.raises(UserError, match="--data-dir"):  # a repair says nothing of where it came from
        verify_cache(theirs, recompute=6)
    monkeypatch.setenv("LOSA_CACHE_HOME", str(tmp_path / "another user"))
    with pytest.raises(UserError, match="--data-dir"):
        verify_cache(made.path, recompute=6)
    lc.extract("vit_digits", out=theirs, precision="int4", **source)  # this user names them, too: from now on known
    assert verify_cache(theirs, recompute=6)["intact"]


OPTIONS = {
    "weights to download": ({"backbone": "vit_b", "dataset": "digits"}, "--weights"),
    "images to download": ({"dataset": "cifar10"}, "--data-dir"),
    "a system folder": ({"dataset": "/etc"}, "--data-dir"),
    "a data set in a system folder": ({"dataset": "folder", "data_dir": "/"}, "--data-dir"),
    "weights of this machine": ({"dataset": "digits", "weights": "/dev/zero"}, "--weights"),
    "both": ({"backbone": "vit_b", "dataset": "cifar10", "data_dir": "/"}, "--data-dir.*--weights"),
    "a folder above": ({"dataset": "digits", "split": "../.."}, "the split is a path"),
    "an unknown option": ({"dataset": "digits", "hook": "x"}, "there is an option 'hook'"),
    "no backbone": ({"backbone": None}, "cannot be used"),
    "numbers": ({"dataset": 5}, "cannot be used"),
    "an unknown backbone": ({"backbone": "hf-hub:somebody/model", "dataset": "digits"}, "unknown backbone"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_an_unknown_cache_open_and_fetch_nothing(case, tmp_path, digits, monkeypatch):
    change, message = OPTIONS[case]
    shutil.copytree(digits["test"], tmp_path / "c.zarr")
    root = tmp_path / "c.zarr" / "zarr.json"
    content = json.loads(root.read_text())
    content["attributes"]["losa_cache"]["options"] |= change
    root.write_text(json.dumps(content))
    cache = lc.open_cache(tmp_path / "c.zarr")
    monkeypatch.setattr(recompute, "open_inputs", lambda **_: pytest.fail("something was opened"))
    with pytest.raises(UserError, match=message):
        recompute.reopen(cache)


def test_what_comes_with_the_package_is_computed_again_for_any_cache(tmp_path, digits):
    for name in ("test.zarr", "test.zarr.receipts"):
        shutil.copytree(digits["home"] / name, tmp_path / name)
    assert verify_cache(tmp_path / "test.zarr", recompute=3)["recomputed"]["wrong"] == []


@pytest.mark.slow
@plain_alone  # a cluster takes five seconds to start and stop
def test_a_distributed_scheduler_finds_the_same(cache):
    from distributed import LocalCluster

    flip(cache.shard_path(1), 10, 1)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        found = verify_cache(cache.path, scheduler=cluster.scheduler_address)
    assert found["damaged"] == verify_cache(cache.path)["damaged"]
    assert len(found["damaged"]["samples"]) == 1
    with pytest.raises(UserError, match="no dask scheduler answers at 'tcp://127.0.0.1:9'"):
        verify_cache(cache.path, scheduler="tcp://127.0.0.1:9")


@plain_alone
def test_reading_a_damaged_chunk_in_training_names_sample_and_shard(cache):
    flip(cache.shard_path(1), 10, 1)
    sample = cache.ids[next(r for r in cache.layout.rows(1) if cache.labels[r] >= 0)]
    with pytest.raises(UserError, match=rf"sample '{sample}' cannot be read from shard 1 .*verify --repair mends it"):
        lc.train(cache, epochs=1, val_fraction=0, batch_size=4, out=cache.path.with_name("run"))
    assert np.isfinite(frozen_tail(cache).state_dict()["norm.weight"].numpy()).all()


def test_a_cache_in_which_an_empty_folder_was_a_class_is_checked_and_its_images_open(tmp_path):
    (tmp_path / "set/ant").mkdir(parents=True)
    for name in ("bee/1.png", "cat/20.png"):
        (tmp_path / "set" / name).parent.mkdir()
        Image.new("RGB", (8, 8), (len(name), 9, 0)).save(tmp_path / "set" / name)
    samples = load_samples("folder", data_dir=tmp_path / "set")
    assert samples.labels.tolist() == [0, 1]
    former = replace(samples.earlier, earlier=None)
    assert (former.classes, former.labels.tolist()) == (("ant", "bee", "cat"), [1, 2])
    cache = extract(tiny_backbone(), former, device="cpu", out=tmp_path / "cache.zarr", batch_size=2)
    found = verify_cache(cache.path, recompute=2, backbone=tiny_backbone(), dataset=samples, device="cpu")
    assert found["intact"]
    assert recompute.reopen_images(cache, dataset=samples).ids == cache.sample_ids
    with pytest.raises(UserError, match="other images"):
        recompute.reopen_images(cache, dataset=replace(samples, earlier=None))
    cache.shard_path(0).unlink()
    again = extract(tiny_backbone(), samples, device="cpu", out=cache.path, batch_size=2)  # as interrupted
    assert (again.manifest.identity, again.labels.tolist()) == (cache.manifest.identity, cache.labels.tolist())
    assert again.manifest.classes == ["ant", "bee", "cat"]
    again.shard_path(0).unlink()
    mended = verify_cache(cache.path, repair=True, backbone=tiny_backbone(), dataset=samples, device="cpu")
    assert mended["intact"]
    assert lc.open_cache(cache.path).labels.tolist() == cache.labels.tolist()
