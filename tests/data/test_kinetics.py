"""Kinetics-400 in the layouts that people have on disk."""

import pytest

from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoder
from losa_cache.data.load import load_samples
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from tests.data.videos import number_of, write_video

HEADER = "label,youtube_id,time_start,time_end,split"
FILES = {"abc-DEF_123_000005_000015": 0, "-xyz_000100_000110": 100, "0000_000000_000010": 200}


def load(root, split="train"):
    return load_samples("kinetics400", data_dir=root, split=split)


def begins(samples):
    """The number of the first frame of each sample: which video it is."""
    return [number_of(next(samples.clip(i, Clip(9)))) for i in range(len(samples))]


def put(root, *names):
    for name in names:
        write_video(root / f"{name}.mp4", 9, first=FILES[name.split("/")[-1]])


def test_class_folders(tmp_path):
    put(tmp_path / "train", "air drumming/abc-DEF_123_000005_000015", "zumba/-xyz_000100_000110")
    put(tmp_path / "val", "zumba/0000_000000_000010")
    train, val = load(tmp_path), load_samples("Kinetics-400", data_dir=tmp_path, split="val")
    assert (train.name, train.classes, train.labels.tolist()) == ("kinetics400", ("air drumming", "zumba"), [0, 1])
    assert list(train.ids) == ["air drumming/abc-DEF_123_000005_000015.mp4", "zumba/-xyz_000100_000110.mp4"]
    assert (begins(train), begins(val)) == ([0, 100], [200])


TABLE = f"""{HEADER}
zumba,abc-DEF_123,5,15,train
"playing, alone",-xyz,100,110,train
"""


@pytest.mark.parametrize(
    "places",
    [("train/", "train/"), ("train/zumba/", "train/playing alone/"), ("", "deep/er/")],
    ids=lambda each: each[1],
)
@pytest.mark.parametrize("name", ["train.csv", "annotations/kinetics-400_train.csv"])
def test_a_table_names_videos_wherever_they_lie(tmp_path, places, name):
    put(tmp_path, f"{places[0]}abc-DEF_123_000005_000015", f"{places[1]}-xyz_000100_000110")
    (tmp_path / "annotations").mkdir()
    (tmp_path / name).write_text(TABLE)
    samples = load(tmp_path)
    assert (samples.classes, samples.labels.tolist()) == (("playing, alone", "zumba"), [1, 0])
    assert list(samples.ids) == [f"{places[0]}abc-DEF_123_000005_000015.mp4", f"{places[1]}-xyz_000100_000110.mp4"]
    assert begins(samples) == [0, 100]


def test_classes_are_numbered_alike_in_every_split(tmp_path):
    put(tmp_path / "train", "abc-DEF_123_000005_000015", "-xyz_000100_000110")
    put(tmp_path / "validate", "0000_000000_000010")
    (tmp_path / "train.csv").write_text(TABLE)
    (tmp_path / "validate.csv").write_text(f"{HEADER}\nzumba,0000,0,10,validate\n")
    val = load(tmp_path, "val")
    assert (val.classes, val.labels.tolist(), begins(val)) == (load(tmp_path).classes, [1], [200])


@pytest.mark.parametrize("root", ["", "train/", "{}/", "{}/train/"])
def test_lists_of_paths_and_names(tmp_path, root):
    put(tmp_path / "train", "air drumming/abc-DEF_123_000005_000015", "zumba/-xyz_000100_000110")
    root = root.format(tmp_path)
    entries = [
        ("air drumming/abc-DEF_123_000005_000015.mp4", "air drumming"),
        ("zumba/-xyz_000100_000110.mp4", "zumba"),
    ]
    (tmp_path / "train.txt").write_text("".join(f"{root}{path} {label}\n" for path, label in reversed(entries)))
    samples = load(tmp_path)
    assert (samples.classes, samples.labels.tolist()) == (("air drumming", "zumba"), [1, 0])
    assert begins(samples) == [100, 0]
    assert list(samples.ids) == [f"train/{path}" for path, _ in reversed(entries)]


def test_lists_of_paths_and_numbers(tmp_path):
    put(tmp_path / "videos_val", "air drumming/abc-DEF_123_000005_000015", "zumba/-xyz_000100_000110")
    lines = "air drumming/abc-DEF_123_000005_000015.mp4 0\nzumba/-xyz_000100_000110.mp4 399\n"
    (tmp_path / "kinetics400_val_list_videos.txt").write_text(lines)
    samples = load(tmp_path, "val")
    assert (len(samples.classes), samples.labels.tolist(), begins(samples)) == (400, [0, 399], [0, 100])


def test_equal_names_in_different_folders_are_different_videos(tmp_path):
    write_video(tmp_path / "a/1.mp4", 9, first=100)
    write_video(tmp_path / "b/1.mp4", 9, first=200)
    (tmp_path / "train.csv").write_text("b/1.mp4,1\na/1.mp4,0\n")
    assert begins(load(tmp_path)) == [200, 100]


def test_a_listed_file_that_is_missing_stays_and_does_not_decode(tmp_path):
    put(tmp_path / "train", "abc-DEF_123_000005_000015")
    (tmp_path / "train.csv").write_text(TABLE)
    before = load(tmp_path)
    decoder = Decoder(before, InputSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash", 4), workers=1)
    (batch,) = decoder.batches([[(0, None), (1, None)]])
    decoder.close()
    assert list(batch.failures) == [1]
    assert "No such file" in batch.failures[1][1]
    put(tmp_path / "train", "-xyz_000100_000110")
    assert load(tmp_path).fingerprint != before.fingerprint


OUTSIDE = ["../outside.mp4 0", "/etc/outside.mp4 0", "a/../../outside.mp4 0", "a/../b.mp4 0"]
MALFORMED = ["a/1.mp4", "a/1.jpg 0", "a/1.mp4 ", "x"]


@pytest.mark.parametrize(
    ("lines", "error"), [(OUTSIDE, "line 2 of .*leads out of"), (MALFORMED, "line 2 of .*'path label'")]
)
def test_lists_are_data_not_trusted(tmp_path, lines, error):
    for line in lines:
        (tmp_path / "train.txt").write_text(f"a/1.mp4 0\n{line}\n")
        with pytest.raises(UserError, match=error):
            load(tmp_path)


@pytest.mark.parametrize(
    "row", ["zumba,../../x,5,15,train", "zumba,a/b,5,15,train", "zumba,abc,five,15,train", "zumba,abc"]
)
def test_tables_are_data_not_trusted(tmp_path, row):
    (tmp_path / "train.csv").write_text(f"{TABLE}{row}\n")
    with pytest.raises(UserError, match="line 4 of .*is not a row"):
        load(tmp_path)


def test_a_list_must_fit(tmp_path):
    (tmp_path / "train.txt").write_text("a/1.mp4 400\n")
    with pytest.raises(UserError, match="number a class 400: Kinetics-400's are 0 to 399"):
        load(tmp_path)
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(UserError, match="names no videos"):
        load(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(UserError, match="has no split 'val'"):
        load(tmp_path, "val")
    with pytest.raises(UserError, match="'kinetics400' needs --data-dir"):
        load_samples("kinetics400")
