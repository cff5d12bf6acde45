"""Pictures turned upright from extraction to training: a part of the identity, which older caches do not name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import losa_cache as lc
from losa_cache.cache.identity import identity_hash
from losa_cache.data.load import load_samples
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.recompute import reopen
from losa_cache.inputs import describe
from losa_cache.train.online_config import OnlineConfig
from tests.conftest import tiny_backbone, tiny_samples


def folder(root, *, numbers=(6, 8, 1)):
    """Nine pictures in three classes, stored turned; in ``upright`` the same as they are meant."""
    turns = {6: 1, 8: -1, 1: 0}  # quarter turns counter-clockwise from what is seen to what is stored
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        number = numbers[i % 3]
        exif = Image.Exif()
        exif[0x0112] = number
        for name, stored in (("upright", pixels), ("turned", np.rot90(pixels, turns[number]))):
            path = root / name / "abc"[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif if name == "turned" else None)
    return root / "turned"


def activations(cache):
    return [cache.shard_path(shard).read_bytes() for shard in range(cache.layout.shards)]


def make(root, out, **options):
    return extract(tiny_backbone(), load_samples(str(root)), precision="float32", out=out, **options)


def test_a_cache_is_of_the_pictures_as_they_are_meant(tmp_path):
    root = folder(tmp_path)
    turned, meant = make(root, tmp_path / "a.zarr"), make(tmp_path / "upright", tmp_path / "b.zarr")
    assert activations(turned) == activations(meant)
    assert activations(make(root, tmp_path / "c.zarr", ignore_orientation=True)) != activations(turned)


def test_the_identity_of_older_caches_is_that_of_pictures_as_stored(tmp_path):
    samples = load_samples(str(folder(tmp_path)))
    options = {"layers": [4], "tap": "block", "embedding": False, "precision": "float32", "compute": torch.float32}
    options |= {"seed": 0, "limit": None, "views": 1, "augment": None, "clips": 1}
    upright, stored = (describe(tiny_backbone(), samples, **options, upright=up) for up in (True, False))
    assert upright.fields == stored.fields | {"orientation": "upright"}
    assert stored.identity == identity_hash({"protocol": 4, **stored.fields}) != upright.identity
    assert "orientation" not in describe(tiny_backbone(), tiny_samples(), **options).fields  # of files alone


def test_a_run_is_not_evaluated_on_pictures_that_were_turned_otherwise(tmp_path):
    root = folder(tmp_path)
    stored, upright = (make(root, tmp_path / f"{i}.zarr", ignore_orientation=i == 0) for i in (0, 1))
    lc.train(stored, config=lc.TrainConfig(epochs=1, rank=2), out=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match=r"does not fit .*: orientation \(as stored in training, upright in these"):
        lc.evaluate_run(tmp_path / "run", cache=str(upright.path))
    assert lc.evaluate_run(tmp_path / "run", cache=str(stored.path))["samples"] == 9


def test_an_older_cache_is_not_mixed_with_upright_pictures(tmp_path, caplog):
    root = folder(tmp_path)
    older = make(root, tmp_path / "a.zarr", ignore_orientation=True)
    with pytest.raises(
        UserError, match=r"differs in orientation \(upright asked for, as stored in that cache\).*--ignore-orientation"
    ):
        make(root, tmp_path / "a.zarr")
    assert make(root, tmp_path / "a.zarr", ignore_orientation=True).path == older.path
    default = {"backbone": "vit_digits", "dataset": "folder", "data_dir": root}
    former = lc.extract(**default, ignore_orientation=True)
    caplog.clear()
    fresh = lc.extract(**default)
    assert fresh.path != former.path
    assert f"{str(former.path)!r} holds these pictures as they are stored" in caplog.text
    caplog.clear()
    lc.extract(**default)
    assert "as they are stored" not in caplog.text


def test_verification_takes_pictures_as_the_cache_did(tmp_path):
    root = folder(tmp_path)
    for number, options in enumerate(({}, {"ignore_orientation": True})):
        cache = lc.extract("vit_digits", "folder", data_dir=root, out=tmp_path / f"{number}.zarr", **options)
        assert cache.manifest.options["ignore_orientation"] == bool(options)
        assert lc.verify_cache(cache.path, recompute=9)["recomputed"]["identical"] == 9
        cache.manifest.options.pop("ignore_orientation")  # as older versions wrote them
        assert reopen(cache).manifest.upright == cache.manifest.upright


def test_online_runs_see_what_caches_hold(tmp_path):
    samples = load_samples(str(folder(tmp_path)))
    options = {"epochs": 1, "val_fraction": 0, "batch_size": 9, "device": "cpu"}

    def loss(name, **source):
        run = lc.train(out=tmp_path / name, **source, **options).run
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["train_loss"]

    def online(**more):
        config = OnlineConfig("tiny", "folder", precision="float32", **more)
        return {"online": config, "backbone": tiny_backbone(), "dataset": samples}

    upright = make(tmp_path / "turned", tmp_path / "a.zarr")
    stored = make(tmp_path / "turned", tmp_path / "b.zarr", ignore_orientation=True)
    assert loss("cached", cache=upright) == pytest.approx(fresh := loss("online", **online()), rel=1e-5)
    assert loss("stored", **online(ignore_orientation=True)) != pytest.approx(fresh, rel=1e-4)
    loss("mixed", cache=stored, **online(share=0.5))  # follows the cache
    with pytest.raises(UserError, match="it differs in orientation"):
        loss("wrong", cache=upright, **online(share=0.5, ignore_orientation=True))


def test_a_run_of_an_older_version_goes_on_as_it_began():
    now = OnlineConfig("vit_digits", "folder")
    assert OnlineConfig.from_json(now.to_json()) == now
    older = {name: value for name, value in now.to_json().items() if name != "ignore_orientation"}
    assert OnlineConfig.from_json(older).ignore_orientation
