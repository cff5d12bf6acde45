"""Data sets that are tables, in every format in which people hold them."""

import csv
import json
import logging
import os
import shutil

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import losa_cache as lc
from losa_cache.data.load import load_samples
from losa_cache.data.request import Request
from losa_cache.data.sources import table
from losa_cache.errors import UserError
from losa_cache.extract.verify import verify_cache
from losa_cache.table_file import SUFFIXES
from losa_cache.targets.read import read_targets
from losa_cache.train.config import TrainConfig
from losa_cache.train.training_data import selected
from tests.data.videos import write_video

HEADING = ["File Name", "Label", "split", "group", "age", "tags"]
ROWS = [
    ["b/1.png", "ü, x", "Training", "p1", "3", "a|b"],
    ["b/2.png", "oak", "train", "p2", "4", ""],
    ["a/3.png", "elm", "valid", "p1", "5", "c"],
    ["a/4.png", "oak", "train", "p2", "6", "b"],
]
COLUMNS = "image=File Name,age:numbers,tags"


@pytest.fixture(autouse=True)
def images(tmp_path):
    for place, (name, *_) in enumerate(ROWS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (place, 0, 0)).save(tmp_path / name)


def write(path, rows=ROWS, heading=HEADING):
    """Write a table as the name of its file says."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.table({name: list(cells) for name, *cells in zip(heading, *rows, strict=True)}), path)
    elif path.suffix == ".jsonl":
        entries = [dict(zip(heading, row, strict=True)) for row in rows]
        for entry in entries:
            entry |= {"tags": entry["tags"].split("|") if entry["tags"] else None, "age": int(entry["age"])}
        path.write_text("\n\n".join(map(json.dumps, entries)))
    else:
        mark = {".tsv": "\t", ".txt": ";"}.get(path.suffix, ",")
        with open(path, "w", newline="", encoding="utf-8-sig" if mark == ";" else "utf-8") as file:
            csv.writer(file, delimiter=mark, lineterminator="\n" if mark == "\t" else "\r\n").writerows(
                [heading, *rows]
            )
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "table:t.txt"])
def test_every_format_gives_the_same_samples(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name.removeprefix("table:"))
    samples = load_samples(name, columns=COLUMNS)
    assert (samples.name, samples.split, samples.classes) == ("table", "train", ("elm", "oak", "ü, x"))
    assert (list(samples.ids), samples.labels.tolist()) == (["b/1.png", "b/2.png", "a/4.png"], [2, 1, 1])
    assert [samples.load(place).getpixel((0, 0))[0] for place in range(3)] == [0, 1, 3]
    sets = {each: read_targets(source, samples.ids, name=each) for each, source in samples.targets.items()}
    assert {each: (one.kind, list(one.names), one.values.tolist()) for each, one in sets.items()} == {
        "group": ("class", ["p1", "p2"], [0, 1, 1]),
        "age": ("numbers", ["age"], [[3], [4], [6]]),
        "tags": ("multilabel", ["a", "b", "c"], [[1, 1, 0], [0, 0, 0], [0, 1, 0]]),
    }
    write(tmp_path / "again.csv")
    assert load_samples("again.csv", columns=COLUMNS).fingerprint == samples.fingerprint  # wherever the table lies


def test_columns_are_found_by_common_names_and_classes_agree_between_splits(tmp_path, caplog):
    path = write(tmp_path / "t.csv", heading=["PATH", "Class", *HEADING[2:]])
    train, val = (load_samples(str(path), split=split) for split in ("train", "val"))
    assert train.classes == val.classes
    assert (list(val.ids), val.labels.tolist(), list(val.targets)) == (["a/3.png"], [0], ["group"])
    assert read_targets(val.targets["group"], val.ids, name="group").names == ["p1", "p2"]
    assert table.other_splits(Request(str(path), "train")) == ["val"]
    assert not [said for said in caplog.records if said.levelno >= logging.WARNING]
    write(path, [[name, label, "", "", "", ""] for name, label in zip("abcd", ["10", "9", "-1", "9"], strict=True)])
    moved = tmp_path / "b"
    for name in "abcd":
        (moved / name).write_bytes(b"x")
    write(path, [[name, label, "a", "b", "c", "d"] for name, label in zip("abcd", ["10", "9", "-1", "9"], strict=True)])
    numbered = load_samples(str(path), split="a", data_dir=moved, columns="image=File Name")
    assert (numbered.classes, numbered.labels.tolist()) == (("-1", "9", "10"), [2, 1, 0, 1])


def test_a_column_with_a_common_name_keeps_its_role_where_it_is_listed_alone(tmp_path):
    path = write(tmp_path / "t.csv", [row[:1] + row[1:2] + row[3:5] for row in ROWS], ["path", "label", "group", "age"])
    plain = load_samples(str(path))
    for columns in ("path,label", "label,age:numbers", "image=path,label,group"):
        samples = load_samples(str(path), columns=columns)
        assert (samples.classes, samples.fingerprint) == (plain.classes, plain.fingerprint)
        assert sorted(samples.targets) == (["age", "group"] if "age:" in columns else ["group"])
    named = load_samples(str(path), columns="label=group,label")  # the role is another column's
    assert (named.classes, sorted(named.targets)) == (("p1", "p2"), ["label"])
    write(path, [[*row[:2], row[1]] for row in ROWS], ["path", "label", "class"])
    with pytest.raises(UserError, match="'label' and 'class', each of which may be the label: .*label=label"):
        load_samples(str(path), columns="label,class")


def test_ids_without_suffixes_are_the_only_files_of_these_names(tmp_path):
    rows = [[name.removesuffix(".png"), label, split] for name, label, split, *_ in ROWS]
    path = write(tmp_path / "t.csv", rows, ["id", "label", "split"])
    (tmp_path / "b/1.txt").touch()
    samples = load_samples(str(path), columns="image=id")
    whole = load_samples(str(write(tmp_path / "w.csv")), columns="image=File Name")
    assert (list(samples.ids), samples.fingerprint) == (["b/1.png", "b/2.png", "a/4.png"], whole.fingerprint)
    (tmp_path / "b/1").touch()  # the very name
    assert load_samples(str(path), columns="image=id").ids[0] == "b/1"
    os.remove(tmp_path / "b/1")
    (tmp_path / "b/1.jpg").touch()
    with pytest.raises(UserError, match="'b/1' may be '1.jpg' or '1.png' in .*: write it with its suffix"):
        load_samples(str(path), columns="image=id")
    write(path, [["b/2.jpeg", "x", "train"]], ["path", "label", "split"])
    with pytest.raises(UserError, match=r"the first 'b/2.jpeg' \(there is '2.png'\): write the names as"):
        load_samples(str(path))


def test_a_table_without_splits_is_one_as_its_name_says_and_without_labels_one_class(tmp_path, caplog):
    for name in ("photos.csv", "photos_test.csv"):
        write(tmp_path / name, [[row[0], row[4]] for row in ROWS], ["file", "age"])
    test = load_samples(str(tmp_path / "photos_test.csv"), split="testing")
    assert (test.split, test.classes, set(test.labels)) == ("test", ("unlabelled",), {0})
    assert "has no column of labels" in caplog.text
    caplog.clear()
    load_samples(str(tmp_path / "photos_test.csv"), split="test")
    load_samples(str(tmp_path / "photos.csv"), columns="age:numbers")
    assert not [said for said in caplog.records if said.levelno >= logging.WARNING]
    with pytest.raises(UserError, match=r"no column 'split', so it is 'train' as a whole and has no split 'test'"):
        load_samples(str(tmp_path / "photos.csv"), split="test")


def test_absolute_paths_give_the_same_ids_wherever_their_folder_lies(tmp_path):
    tables = []
    for home in (tmp_path / "here", tmp_path / "there" / "deep"):
        rows = [[str(home / name), label] for name, label, *_ in ROWS]
        for path, _ in rows:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy(tmp_path / "b/1.png", path)
        tables.append(load_samples(str(write(tmp_path / "t.csv", rows, ["path", "label"]))))
    assert list(tables[0].ids) == [row[0] for row in ROWS]
    assert tables[0].fingerprint == tables[1].fingerprint
    assert tables[1].file(0) == tmp_path / "there/deep/b/1.png"
    windows = [[row[0].replace("/", "\\"), row[1]] for row in ROWS]
    assert list(load_samples(str(write(tmp_path / "t.csv", windows, ["path", "label"]))).ids) == list(tables[0].ids)


def test_what_is_missing_or_in_two_splits_is_counted_and_named(tmp_path, caplog):
    rows = [*ROWS, ["b/gone.png", "oak", "train", "p1", "1", ""], ["b/1.png", "elm", "test", "", "", ""]]
    samples = load_samples(str(write(tmp_path / "t.csv", rows)), columns="image=File Name")
    assert len(samples) == 4
    assert "1 of 4 files of" in caplog.text
    assert "are not there: 'b/gone.png'" in caplog.text
    assert "1 images of" in caplog.text
    assert "are in another split, too: 'b/1.png'" in caplog.text


def test_videos_in_a_table_are_clips(tmp_path):
    write_video(tmp_path / "a.mp4", 2)
    path = write(tmp_path / "t.csv", [["a.mp4", "x"]], ["path", "label"])
    assert load_samples(str(path)).clip is not None
    write(path, [["a.mp4", "x"], ["b/1.png", "y"]], ["path", "label"])
    with pytest.raises(UserError, match=r"names videos \('a.mp4'\) and images \('b/1.png'\)"):
        load_samples(str(path))


ONE = "path,label,n\n"
REFUSED = {
    "nothing": ("", {}, "has no column of images"),
    "a heading alone": (ONE, {}, "holds no rows"),
    "no paths": ("name,label\nx,1\n", {}, "no column of images .*--columns image=COLUMN; it has 'name', 'label'"),
    "two columns of paths": ("path,file\nx,y\n", {}, "'path', 'file', each of which may be the image.*image=path"),
    "an unknown column": (ONE + "x,1,2\n", {"columns": "label=labl"}, "no column 'labl'; nearest: label"),
    "an unknown split": (ONE.replace("n", "split") + "x,1,val\n", {}, "no split 'train'; it has: val"),
    "no split": ("path,split\nx,train\ny,\n", {}, "line 3 of .* has no split in column 'split'"),
    "no path": (ONE + ",1,2\n", {}, "line 2 of .* names no image"),
    "no label": (ONE + "x,,2\ny,1,2\n", {}, "line 2 of .* has no label in column 'label', the first of 1 such"),
    "fractions": (ONE + "x,0.5,2\ny,1,2\n", {}, "holds '0.5', and classes are .* pass --columns label"),
    "out of the folder": (ONE + "b/../../x,1,2\n", {}, "line 2 of .* names 'b/../../x', which may lead out"),
    "a URL": (ONE + "http://x/y.png,1,2\n", {}, "a URL: download"),
    "mixed": (ONE + "b/1.png,1,2\n/x/y.png,1,2\n", {}, "line 3 .* other lines have relative paths"),
    "no files": (ONE + "x,1,2\n", {}, "none of the 1 files .* is below .*--data-dir"),
    "twice": (ONE + "b/1.png,1,2\nb/./1.png,1,2\n", {}, "lists 'b/1.png' twice"),
    "a ragged line": (ONE + "x,1,2\nb/1.png,1\n", {}, "line 3 of .* has 2 cells, the heading 3"),
    "whole numbers": (ONE + "b/1.png,1,2\n", {"columns": "n"}, "write n:class or n:numbers"),
    "a text as a number": (ONE + "b/1.png,1,x\n", {"columns": "n:numbers"}, "holds 'x' for 'b/1.png'"),
    "a bad name": (ONE.replace("n", "?") + "b/1.png,1,2\n", {"columns": "?:class"}, "column .?.* cannot be called"),
    "one name": ("path,a b,a_b\nb/1.png,x,y\n", {"columns": "a b,a_b"}, "would both be the target set 'a_b'"),
    "a weight": ("path,weight\nb/1.png,-1\n", {"columns": "weight=weight"}, "'weight' of .* holds a weight below 0"),
    "zero bytes": (ONE + "b\0,1,2\n", {}, "zero byte, so it is no text"),
    "another encoding": ((ONE + "ü,1,2\n").encode("latin-1"), {}, "is not UTF-8.*call 'CSV UTF-8'"),
    "decimal commas": ("path;label\nb/1.png;33,5\nb/2.png;4\n", {}, "holds '33,5', a number with a decimal comma"),
    "a number with a comma": ("path;n\nb/1.png;33,5\n", {"columns": "n:numbers"}, "'33,5' .* with a decimal point"),
    "a column of commas": ("path;n\nb/1.png;33,5\n", {"columns": "n"}, "'33,5', .* write decimal points"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence_with_its_value(tmp_path, case):
    text, options, words = REFUSED[case]
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as told:
        load_samples(str(tmp_path / "t.csv"), **options)
    assert "\n" not in str(told.value)


def test_other_formats_refuse_in_a_sentence_too(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "b/1.png"}\n\n[1]\n')
    with pytest.raises(UserError, match="line 3 of .* is no JSON object"):
        load_samples(str(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text('{"path": {"bytes": "x"}}\n')
    with pytest.raises(UserError, match="column 'path' of .* holds a cell of the type dict"):
        load_samples(str(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text('{"path": "b\\u0000/1.png"}\n')
    with pytest.raises(UserError, match="line 1 of .* zero byte"):
        load_samples(str(tmp_path / "t.jsonl"))
    for cell, reason in (
        ('["x|y", "z"]', r"holds a list with the entry 'x\|y', which would be two \(\| and ; join entries\)"),
        ("[" * 900 + "1" + "]" * 900, "holds a list in a list"),
    ):
        (tmp_path / "t.jsonl").write_text(f'{{"path": "b/1.png", "tags": {cell}}}\n')
        with pytest.raises(UserError, match=f"column 'tags' of .*t.jsonl' {reason}"):
            load_samples(str(tmp_path / "t.jsonl"), columns="tags")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        load_samples(str(tmp_path / "t.parquet"))
    assert table.SPEC.suffixes == SUFFIXES


def test_numbers_too_long_for_floats_stay_apart_and_texts_with_semicolons_are_said(tmp_path, caplog):
    long = ["9007199254740993", "9007199254740992"]
    rows = [
        (f"{place}.png", number, text) for place, (number, text) in enumerate(zip(long, ["a; b", "c"], strict=True))
    ]
    for path, *_ in rows:
        Image.new("L", (4, 4)).save(tmp_path / path)
    path = write(tmp_path / "t.csv", rows, ("path", "label", "kind"))
    samples = load_samples(str(path), columns="kind")
    assert (samples.classes, samples.labels.tolist()) == ((long[1], long[0]), [1, 0])
    assert samples.targets["kind"].names == ["a", "b", "c"]
    assert "'a; b', which is taken for several labels: if it is one class, write kind:class" in caplog.text
    caplog.clear()
    assert load_samples(str(path), columns="kind:class").targets["kind"].names == ["a; b", "c"]
    assert not caplog.text


def test_a_cache_of_a_table_has_its_groups_and_opens_no_table_that_it_names_itself(tmp_path, monkeypatch):
    folder, theirs = tmp_path / "photos", tmp_path / "theirs.zarr"
    rows = [[f"{place}.png", "ab"[place % 2], f"p{place // 4}", place] for place in range(12)]
    folder.mkdir()
    for name, *_ in rows:
        Image.effect_noise((9, 9), 80).save(folder / name)
    write(folder / "t.csv", rows, ["file", "class", "patient", "age"])
    monkeypatch.chdir(folder)
    options = {"columns": "group=patient,age:numbers", "precision": "float32", "layers": 2}
    cache = lc.extract("vit_digits", "table:t.csv", out=tmp_path / "c.zarr", **options)
    assert cache.target_kinds == {"labels": "class", "group": "class", "age": "numbers"}
    chosen = selected(cache, TrainConfig(group_by="group", val_fraction=0.3))
    groups = cache.target_set("group").values
    assert len(chosen.held_out) and not {*groups[chosen.train]} & {*groups[chosen.held_out]}
    assert dict(zip(cache.sample_ids, cache.target_set("age").values[:, 0], strict=True)) == {r[0]: r[3] for r in rows}
    monkeypatch.chdir(tmp_path)
    assert verify_cache(cache.path, recompute=2)["recomputed"]["wrong"] == []
    for end in ("", ".receipts"):
        shutil.copytree(f"{cache.path}{end}", f"{theirs}{end}")
    (tmp_path / "images alone").mkdir()
    for where in ({}, {"data_dir": tmp_path / "images alone"}):
        with pytest.raises(UserError, match=r"not opened: pass --data-dir, the folder of 't.csv' and of its images"):
            verify_cache(theirs, recompute=2, **where)
    shutil.move(folder, tmp_path / "moved")
    for place in (tmp_path / "moved", tmp_path / "moved" / "t.csv"):
        assert verify_cache(theirs, recompute=2, data_dir=place)["recomputed"]["wrong"] == []
