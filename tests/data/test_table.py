"""Data sets that are tables, in every format in which people hold them."""

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from losa_cache.data.load import load_samples
from losa_cache.data.sources import table
from losa_cache.errors import UserError
from losa_cache.table_file import SUFFIXES
from losa_cache.targets.read import read_targets

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
    assert (
        load_samples("t.csv" if name != "t.csv" else name, columns=COLUMNS).fingerprint == samples.fingerprint
        if (write(tmp_path / "t.csv"))
        else None
    )
