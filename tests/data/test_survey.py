"""What is told of a data set before it is extracted, against sets that were made with known faults."""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.cli import app
from losa_cache.data.request import Request
from losa_cache.data.spec import other_splits
from tests.data.videos import write_video


def put(path, size=(30, 20), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(path)


@pytest.fixture
def root(tmp_path):
    put(tmp_path / "train/cat/0.png")
    put(tmp_path / "train/cat/1.jpg", (640, 480), seed=1)
    put(tmp_path / "train/dog/2.png", (8, 90), "L", seed=2)
    put(tmp_path / "train/dog/3.tif", (10, 10), "I;16", seed=3)
    put(tmp_path / "test/cat/4.png", seed=4)
    (tmp_path / "train/dog/cut.jpg").write_bytes((tmp_path / "train/cat/1.jpg").read_bytes()[:9000])
    (tmp_path / "train/dog/no\x1b[31m.jpg").write_bytes(b"no image")
    (tmp_path / "train/cat/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "train/cat/.DS_Store").write_text("")
    return tmp_path


def test_headers_say_sizes_modes_and_what_is_no_image(root):
    told = lc.survey("folder", data_dir=str(root))
    assert told["classes"] == {"cat": 3, "dog": 4}
    assert (told["images"], told["split"], told["videos"]) == (7, "train", False)
    assert told["fingerprint"] == lc.load_samples("folder", data_dir=root).fingerprint
    assert told["width"] == {"min": 8, "median": 30, "max": 640}  # of 8, 10, 30, 640, 640
    assert told["height"] == {"min": 10, "median": 90, "max": 480}  # of 10, 20, 90, 480, 480
    assert told["modes"] == {"RGB": 3, "L": 1, "I;16": 1}
    assert told["formats"] == {"PNG": 2, "JPEG": 2, "TIFF": 1}
    assert [bad["id"] for bad in told["unreadable"]] == ["cat/gone.jpg", "dog/no\x1b[31m.jpg"]
    assert told["left_out"] == [{"what": "hidden or system files and folders", "count": 1, "names": ["cat/.DS_Store"]}]
    assert (told["duplicates"], told["leaks"], told["other_splits"]) == ([], [], {"test": 1})


def test_only_decoding_finds_an_image_that_is_cut(root):
    decoded = lc.survey("folder", data_dir=str(root), look="pixels")
    assert [bad["id"] for bad in decoded["unreadable"]] == ["cat/gone.jpg", "dog/cut.jpg", "dog/no\x1b[31m.jpg"]
    assert "truncated" in decoded["unreadable"][1]["reason"]
    names = lc.survey("folder", data_dir=str(root), look="names")
    assert names == {key: decoded[key] for key in names}
    assert "unreadable" not in names


def test_duplicates_and_leaks_are_those_of_all_bytes(tmp_path):
    """Files agree in size, or in size and end, or in all bytes; a dictionary of all bytes says which are equal."""
    random, content = np.random.default_rng(0), {}
    for number in range(300):
        split, kind = ("train", "val", "test")[number % 3], "ab"[number % 2]
        start, end = random.integers(0, 6), random.integers(0, 4)
        body = bytes([start]) * 3000 + bytes([end]) * int(random.choice([1, 2000, 5000]))
        path = tmp_path / split / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        content[split, f"{kind}/{number}.png"] = body
    told = lc.survey("folder", data_dir=str(tmp_path), split="val")
    groups = defaultdict(lambda: defaultdict(list))
    for (split, name), body in sorted(content.items()):
        groups[body][split].append(name)
    inside = [group["val"] for group in groups.values() if len(group["val"]) > 1]
    across = [
        (group["val"], split, group[split])
        for group in groups.values()
        for split in ("train", "test")
        if group["val"] and group[split]
    ]
    assert sorted(group["ids"] for group in told["duplicates"]) == sorted(inside)
    assert all(group["classes"] == sorted({name[0] for name in group["ids"]}) for group in told["duplicates"])
    assert sorted((leak["ids"], leak["split"], leak["others"]) for leak in told["leaks"]) == sorted(across)
    assert Counter(map(len, inside)).total() > 5
    assert len(across) > 20
    assert told["other_splits"] == {"train": 100, "test": 100}


def test_images_without_files_are_looked_at_by_their_bytes_or_their_pixels():
    scans = [np.full((4, 6), value, dtype=np.uint8) for value in (1, 2, 1, 3)]
    samples = lc.Samples.of(scans, "scans", labels=[0, 0, 1, 1], classes=["a", "b"])
    told = lc.survey(samples)
    assert (told["formats"], told["modes"], told["width"]["max"]) == ({"in memory": 4}, {"L": 4}, 6)
    assert told["duplicates"] == [{"ids": ["000000", "000002"], "classes": ["a", "b"]}]

    def encoded(index):
        file = BytesIO()
        Image.fromarray(scans[index]).save(file, "WEBP" if index == 2 else "PNG")  # other bytes of the same pixels
        return file.getvalue()

    told = lc.survey(replace(samples, encoded=encoded))
    assert (told["formats"], told["duplicates"]) == ({"PNG": 3, "WEBP": 1}, [])


def test_a_table_is_compared_across_the_values_of_its_column(root):
    put(root / "train/dog/copy.png")  # as cat/0.png
    rows = ["path,label,split,age", "train/cat/0.png,cat,train,3", "train/dog/copy.png,dog,holdout,4"]
    (root / "all.csv").write_text("\n".join(rows))
    told = lc.survey(f"table:{root / 'all.csv'}", columns="age:numbers")
    assert (told["targets"], told["other_splits"]) == (["age"], {"holdout": 1})
    assert told["leaks"] == [{"ids": ["train/cat/0.png"], "split": "holdout", "others": ["train/dog/copy.png"]}]


def test_pixels_are_decoded_by_the_rules_that_extract_would_take(root):
    rules = {"data_dir": str(root), "look": "pixels", "channels": "4,2,1"}
    reasons = {bad["id"]: bad["reason"] for bad in lc.survey("folder", **rules)["unreadable"]}
    assert "cat/0.png" in reasons  # it has three channels
    with pytest.raises(lc.UserError, match="page is 0"):
        lc.survey("folder", data_dir=str(root), page=0)


def test_videos_are_told_without_a_decoded_frame(tmp_path):
    write_video(tmp_path / "train" / "a.mp4", frames=3)
    told = lc.survey("folder", data_dir=str(tmp_path))
    assert (told["videos"], told["width"]["max"], told["height"]["max"]) == (True, 64, 48)
    assert told["modes"] == {"yuv420p": 1}


def test_splits_that_hold_each_other_are_not_compared(tmp_path):
    wanted = {"train800val200": ("test",), "train800": ("val200", "test"), "test": ("train800val200",)}
    assert {split: other_splits("vtab", Request("vtab", split)) for split in wanted} == wanted
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text("a.mp4 1\n")
    assert other_splits("kinetics400", Request("kinetics400", "train", tmp_path)) == ["val"]
    assert other_splits("places365", Request("places365", "train-challenge")) == ("val",)
    assert other_splits("inaturalist", Request("inaturalist", "train_mini")) == ("val",)
    assert other_splits("digits", Request("digits", "test")) == ["train"]  # by its name alone


def test_a_split_that_cannot_be_opened_is_said(root):
    (root / "test/cat/4.png").unlink()
    assert "holds no class folders with images" in lc.survey("folder", data_dir=str(root))["other_splits"]["test"]


def test_the_command_escapes_names_and_needs_no_torch(root):
    for name in ("train/dog/copy.png", "test/cat/leak.png"):
        put(root / name)  # as cat/0.png
    code = "import sys; sys.modules['torch'] = None; from losa_cache.__main__ import main; main()"
    command = [sys.executable, "-c", code, "data", "--dataset", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "folder, split train: 8 images" in lines
    assert any(re.fullmatch(r"classes: 2; images in each: \d+( to \d+)?", line) for line in lines)
    assert "  dog/no\\x1b[31m.jpg: UnidentifiedImageError" in done.stdout
    assert "images that equal another one in this split: 1 (groups of them that lie in several classes: 1)" in lines
    assert "  cat/0.png = dog/copy.png in 2 classes" in lines
    assert "images that split test (2 images) has, too: 2" in lines
    assert "  cat/0.png = dog/copy.png = cat/leak.png" in lines


def test_the_command_gives_json_and_refuses_what_it_cannot_do(root):
    done = CliRunner().invoke(app, ["data", "--dataset", str(root), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == lc.survey(str(root))
    for name in ("cat/0.png", "cat/1.jpg", "dog/2.png", "dog/3.tif", "dog/cut.jpg"):
        (root / "train" / name).write_bytes(b"no image")
    done = CliRunner().invoke(app, ["data", "--dataset", str(root)])
    assert "unreadable images: 7" in done.stdout  # the report comes first
    assert isinstance(done.exception, lc.UserError)
    assert "none of its 7 images can be read" in str(done.exception)
    with pytest.raises(lc.UserError, match="choose one of names, headers, pixels"):
        lc.survey(str(root), look="deep")
