"""Adapters of dense tasks in other hands: maps in a file, and a program that gives outputs of patches."""

import csv

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.apply.predict.formats.png_folder import _place
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import DEPTH, MASK, TargetSet

OPTIONS = {"rank": 2, "epochs": 1, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}


@pytest.fixture
def runs(tiny_cache, tmp_path):
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 3, (23, 8, 8)).astype(np.uint8)
    add_targets(tiny_cache, TargetSet("scene", MASK, ["sky", "road", "pole"], masks))
    depths = generator.uniform(1, 9, (23, 8, 8)).astype(np.float32)
    add_targets(tiny_cache, TargetSet("metres", DEPTH, ["depth"], depths))
    cache = lc.open_cache(tiny_cache.path)
    tasks = {"segmentation": {"decoder": "conv"}, "depth": {"head": "last"}}
    runs = {task: lc.train(cache, out=tmp_path / task, task=task, **OPTIONS | own).run for task, own in tasks.items()}
    return cache, runs


def by_torch(run, cache):
    model, found = lc.load_adapter(run, device="cpu"), {}
    with torch.inference_mode(), lc.batches(cache, points=model.points, val_fraction=0, device="cpu") as batches:
        for batch in batches:
            large = F.interpolate(model(batch.blocks), (8, 8), mode="bilinear")
            found |= dict(zip(batch.ids, large, strict=True))
    return found


def test_maps_are_written_to_arrays_and_an_output_is_added_to(runs, tmp_path):
    cache, each = runs
    out = tmp_path / "maps.zarr"
    named = {name: str(run) for name, run in each.items()}
    found = lc.predict(named, cache, out=out, take=lambda table, rows: None, device="cpu")
    again = lc.predict(named, cache, out=out, device="cpu")
    assert found.rows == again.rows == 23
    group = zarr.open_group(out, mode="r")
    masks, depths = group["maps/segmentation"], group["maps/depth"]
    assert (masks.dtype, depths.dtype) == (np.uint8, np.float32)
    assert masks.attrs["classes"] == ["sky", "road", "pole"]
    logits, logarithms = (by_torch(run, cache) for run in each.values())
    for at, name in enumerate(group["ids"][:]):
        np.testing.assert_array_equal(masks[at], logits[name].argmax(0))
        np.testing.assert_allclose(depths[at], logarithms[name][0].exp(), rtol=1e-5)
    (kept,) = lc.predict(str(each["depth"]), cache, device="cpu").predictions[:1]
    np.testing.assert_allclose(kept["predictions"]["depth"], logarithms[kept["id"]][0].exp(), rtol=1e-5)


def test_masks_are_png_files_and_a_folder_is_read_back(runs, tmp_path):
    cache, each = runs
    logits, out = by_torch(each["segmentation"], cache), tmp_path / "masks"
    given = {"a": str(each["segmentation"])}
    lc.predict(given, cache, out=f"{out}/", device="cpu")
    for line in csv.DictReader((out / "index.csv").read_text().splitlines()):
        with Image.open(out / line["file"]) as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), logits[line["id"]].argmax(0))
    assert (out / "classes.txt").read_text().split() == ["sky", "road", "pole"]
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert lc.predict(given, cache, out=str(out), device="cpu").rows == 23  # is read back
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(lc.UserError, match=r"is there, and is no such output \(it has no index.csv\)"):
        lc.predict(given, cache, out=str(tmp_path / "mine"), device="cpu")
    with pytest.raises(lc.UserError, match="a folder holds the masks of one adapter"):
        lc.predict(str(each["depth"]), cache, out=f"{out}2/", device="cpu")


def test_the_file_of_a_mask_lies_below_the_folder_and_is_nobody_elses():
    taken = set()
    for name, expected in (
        ("a/1.jpg", "a/1.png"),
        ("a/1.png", "a/1.png.png"),
        ("/a/../a/1.jpg", "a/a/1.png"),
        ("a/1.jpeg", "a/1.jpeg.png"),
        ("..", "image.png"),
    ):
        assert _place(name, taken) == expected
        taken.add(expected)


def test_files_that_hold_no_maps_are_refused(runs, tmp_path):
    cache, each = runs
    with pytest.raises(lc.UserError, match=r"maps.csv', but maps are written to .zarr, and masks to a folder"):
        lc.predict(str(each["depth"]), cache, out=tmp_path / "maps.csv", device="cpu")
    with pytest.raises(lc.UserError, match=r"is not printed: write them with --out maps.zarr"):
        lc.predict(str(each["depth"]), cache, take=lambda table, rows: None, device="cpu")


@pytest.mark.slow
def test_an_exported_file_gives_outputs_of_patches_and_says_what_becomes_of_them(runs, tmp_path):
    _, each = runs
    told = lc.export(each["segmentation"], out=tmp_path / "side.pt2", format="torch", side_only=True)
    assert told["shape"] == ["batch", 3, 8, 8]  # 4 x 4 outputs in each of 2 x 2 patches
    assert told["maps"] == {"rows": 8, "columns": 8, "enlarge": "bilinear", "size": [8, 8], "values": "logits"}
    blocks = [torch.randn(3, 5, 32) for _ in range(4)]
    program = torch.export.load(tmp_path / "side.pt2").module()
    expected = lc.load_adapter(each["segmentation"], device="cpu")(blocks)
    torch.testing.assert_close(program(*blocks), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (3, 3, 8, 8)
