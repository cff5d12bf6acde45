"""Files of ``predict``: read by others, resumed after a kill at any step, added to."""

import csv
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import zarr

import losa_cache as lc
from losa_cache.apply.predict.formats import find_format
from losa_cache.apply.predict.output import Output
from losa_cache.apply.predict.table import FEATURES, NUMBERS, RANKED, Answer, Rows, Table, first, plain, regrouped
from tests.apply.predicting import COUNT, cache_of, files, photos, picture, train
from tests.conftest import tiny_backbone
from tests.forked import Forked

CLASSES = ("a", 'b "quoted", c', "d\nline", "Ü\u202e")
NAMES = ["plain.png", 'comma, "quote".png', "line\n\rbreak.png", "=1+1.png", "\x1b[31m.png", "ü\u2028.png",
         plain(os.fsdecode(b"not-utf8-\xff.png"))]  # fmt: skip
FORMATS = {".csv": False, ".jsonl": False, ".parquet": False, ".npy": True, ".zarr": True, "both.parquet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pictures, and two runs on it."""
    folder = tmp_path_factory.mktemp("predict_files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        cache = cache_of(photos(folder / "photos"), folder / "photos.zarr")
        train(cache, folder / "birds")
        train(cache, folder / "scenes", seed=3, head="last")
    return folder


def options(name):
    """An output's name, and how it is asked for."""
    embed = FORMATS[name]
    adapters = ["birds"] if name == ".npy" else ["birds", "scenes"]
    more = {"embed": embed, "batch_size": 4, "device": "cpu", "workers": 1} | ({} if embed else {"top_k": 2})
    return adapters, f"out{name}", more


def predict(made, folder, name):
    """Predict ``photos`` in this folder into ``out`` in it."""
    adapters, out, more = options(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return lc.predict([str(made / own) for own in adapters], "photos", out=out, backbone=tiny_backbone(), **more)


def copied(made, tmp_path):
    shutil.copytree(made / "photos", tmp_path / "photos")
    return tmp_path


def written(folder):
    return {name: content for name, content in files(folder).items() if name.startswith("out")}


def predictions_table(rng, count):
    ranked = np.stack([rng.integers(0, 4, (count, 2)), rng.random((count, 2))], 2).reshape(count, 4)
    values = (ranked.astype(np.float32), rng.standard_normal((count, 3)).astype(np.float32))
    answers = (Answer("one", RANKED, 4, "x", CLASSES), Answer('t"w,o', NUMBERS, 3, "y"))
    return Table(answers), values


def features_table(rng, count, widths=(5, 3)):
    values = tuple(rng.standard_normal((count, width)).astype(np.float32) for width in widths)
    return Table(tuple(Answer(f"n{at}", FEATURES, width, "x") for at, width in enumerate(widths))), values


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_json_lines_and_parquet_are_read_by_others(tmp_path):
    table, values = predictions_table(np.random.default_rng(0), len(NAMES))
    rows = Rows(NAMES, values)
    for suffix in (".csv", ".jsonl", ".parquet"):
        kind = find_format(Path(f"x{suffix}"), embeds=False)
        kind.write(tmp_path / f"x{suffix}", table, iter([rows.part(0, 3), rows.part(3, 99)]), len(rows))
        again = list(kind.read(tmp_path / f"x{suffix}", table))
        assert [name for part in again for name in part.ids] == NAMES
        for at, own in enumerate(values):
            np.testing.assert_array_equal(np.concatenate([part.values[at] for part in again]), own)
    lines = read_csv(tmp_path / "x.csv")
    parquet = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    objects = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().split("\n")[:-1]]
    assert [own["id"] for own in lines] == [own["id"] for own in parquet] == [own["id"] for own in objects] == NAMES
    for place, (line, own, entry) in enumerate(zip(lines, parquet, objects, strict=True)):
        for at in range(2):
            number, share = values[0][place, 2 * at : 2 * at + 2]
            answer = entry["predictions"]["one"][at]
            assert line[f"one.class_{at + 1}"] == own[f"one.class_{at + 1}"] == answer["class"] == CLASSES[int(number)]
            for found in (line[f"one.probability_{at + 1}"], own[f"one.probability_{at + 1}"], answer["probability"]):
                assert np.float32(found) == share
        for at in range(3):
            for found in (
                line[f't"w,o.value_{at + 1}'],
                own[f't"w,o.value_{at + 1}'],
                entry["predictions"]['t"w,o'][at],
            ):
                assert np.float32(found) == values[1][place, at]


def test_features_are_read_by_numpy_zarr_and_pyarrow(tmp_path):
    names = NAMES * 300  # more than a chunk
    table, values = features_table(np.random.default_rng(1), len(names))
    single = Table(table.answers[:1])
    for suffix, own, parts in ((".npy", single, values[:1]), (".parquet", table, values), (".zarr", table, values)):
        kind, rows = find_format(Path(f"x{suffix}"), embeds=True), Rows(names, parts)
        kind.write(tmp_path / f"x{suffix}", own, iter([rows.part(0, 1500), rows.part(1500, 9999)]), len(rows))
        assert [name for part in kind.read(tmp_path / f"x{suffix}", own) for name in part.ids] == names
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), values[0])
    assert json.loads((tmp_path / "x.ids.json").read_text()) == names
    parquet = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert parquet["id"].to_pylist() == list(group["ids"][:]) == names
    for at, expected in enumerate(values):
        np.testing.assert_array_equal(np.array(parquet[f"n{at}"].to_pylist(), np.float32), expected)
        np.testing.assert_array_equal(group[f"features/n{at}"][:], expected)


def test_what_is_written_does_not_depend_on_how_rows_come(tmp_path):
    for embeds, make, suffixes in (
        (False, predictions_table, (".csv", ".jsonl", ".parquet")),
        (True, features_table, (".parquet", ".zarr")),
    ):
        table, values = make(np.random.default_rng(2), 2100)
        rows = Rows([f"{number}" for number in range(2100)], values)
        for suffix in suffixes:
            kind, found = find_format(Path(f"x{suffix}"), embeds=embeds), []
            for cut in (2100, 7):
                folder = tmp_path / f"{embeds}{suffix}{cut}"
                folder.mkdir()
                parts = (rows.part(at, at + cut) for at in range(0, 2100, cut))
                kind.write(folder / f"x{suffix}", table, parts, 2100)
                found.append(files(folder))
            assert found[0] == found[1]


def test_rows_are_regrouped_and_the_first_ones_taken():
    whole = Rows([str(number) for number in range(23)], (np.arange(46, dtype=np.float32).reshape(23, 2),))
    parts = [whole.part(at, at + 3) for at in range(0, 23, 3)]
    again = list(regrouped(parts, 5))
    assert [len(part) for part in again] == [5, 5, 5, 5, 3]
    assert [name for part in again for name in part.ids] == whole.ids
    np.testing.assert_array_equal(np.concatenate([part.values[0] for part in again]), whole.values[0])
    assert [name for part in first(parts, 10) for name in part.ids] == whole.ids[:10]
    assert list(first(parts, 0)) == []
    with pytest.raises(ValueError, match="it has 23 rows in place of 24"):
        list(first(parts, 24))


# Forks a call after the other, and kills each at one of its steps, one further in each: at a batch that is taken, or
# where Python itself reports a step on the file system that names the output.
NURSERY = """
import glob, os, shutil, signal, sys
import losa_cache as lc
from losa_cache.apply.predict.output import Output
from tests.conftest import tiny_backbone

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
os.fsync = lambda handle: None

def child(folder, at=None):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    os.chdir(folder)
    count = 0
    def step():
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
    add = Output.add
    def added(*arguments):
        found = add(*arguments)
        step()
        return found
    Output.add = added
    sys.addaudithook(lambda event, values: event in STEPS and "out{name}" in str(values[0]) and step())
    try:
        lc.predict({adapters!r}, "photos", out="out{name}", backbone=tiny_backbone(), **{more!r})
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)

at, status = {stride} // 2 + 1, None
while status != 0:
    folder = os.path.join({folder!r}, str(at))
    shutil.copytree({start!r}, folder, symlinks=True)
    status = child(folder, at)
    if os.WIFEXITED(status) and status:
        sys.exit("a call failed")
    again = child(folder)
    if again:
        sys.exit("a call failed after the kill at step %d" % at)
    at += {stride}
print(at)
"""


@pytest.mark.parametrize(
    ("name", "stride"),
    [(".csv", 6), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in FORMATS)],
)
def test_a_killed_call_ends_as_if_nothing_had_happened(name, stride, made, tmp_path):
    """Also one that adds to an output: it begins where one is that lacks some of the images."""
    (tmp_path / "start").mkdir()
    copied(made, tmp_path / "start")
    (tmp_path / "start/photos/a/bad.png").write_text("no picture")
    moved = tmp_path / "later.png"
    os.replace(tmp_path / "start/photos/c/20.png", moved)
    if name in (".zarr", ".csv"):
        predict(made, tmp_path / "start", name)
    os.replace(moved, tmp_path / "start/photos/c/20.png")
    shutil.copytree(tmp_path / "start", tmp_path / "whole")
    found = predict(made, tmp_path / "whole", name)
    assert (found.rows, found.skipped_count) == (COUNT, 1)
    adapters, _, more = options(name)
    adapters = [str(made / own) for own in adapters]
    (tmp_path / "killed").mkdir()
    folders = {"folder": str(tmp_path / "killed"), "start": str(tmp_path / "start")}
    code = NURSERY.format(name=name, adapters=adapters, more=more, stride=stride, **folders)
    done = Forked("-c", code).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    expected = written(tmp_path / "whole")
    assert expected
    kills = list((tmp_path / "killed").iterdir())
    assert len(kills) >= 3
    for folder in kills:
        assert written(folder) == expected, folder.name


def test_new_files_are_added_and_mended_ones_tried_again(made, tmp_path):
    copied(made, tmp_path)
    (tmp_path / "photos/a/bad.png").write_text("no picture")
    (tmp_path / "photos/b/bad.png").write_text("no picture")
    predict(made, tmp_path, ".csv")
    before = written(tmp_path)
    adapters, _, more = options(".csv")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(lc.UserError, match="backbone"):
        patch.chdir(tmp_path)  # skipped ones are tried again, by a backbone that no name loads
        lc.predict([str(made / own) for own in adapters], "photos", out="out.csv", **more)
    assert written(tmp_path) == before
    found = predict(made, tmp_path, ".csv")
    assert written(tmp_path) == before
    assert (found.rows, found.skipped_count) == (COUNT, 2)
    picture(1).save(tmp_path / "photos/a/bad.png")
    picture(77).save(tmp_path / "photos/a/aa.png")
    assert predict(made, tmp_path, ".csv").rows == COUNT + 2
    lines = read_csv(tmp_path / "out.csv")
    assert [line["id"] for line in lines[:COUNT]] == [
        line["id"] for line in csv.DictReader(before["out.csv"].decode().splitlines())
    ]
    assert {line["id"] for line in lines[COUNT:]} == {"photos/a/aa.png", "photos/a/bad.png"}
    info = json.loads((tmp_path / "out.csv.info.json").read_text())
    assert [entry["id"] for entry in info["skipped"]] == ["photos/b/bad.png"]
    (tmp_path / "photos/b/bad.png").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # nothing is new: no backbone is needed
        lc.predict([str(made / own) for own in adapters], "photos", out="out.csv", **more)
    assert read_csv(tmp_path / "out.csv") == lines


def test_a_journal_that_is_cut_or_flipped_loses_its_end_alone(made, tmp_path):
    copied(made, tmp_path)
    predict(made, tmp_path, ".csv")
    expected = written(tmp_path)
    kept = tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "finish", lambda self: shutil.copy(self._journal.path, kept))
        (tmp_path / "out.csv").unlink()
        predict(made, tmp_path, ".csv")
    journal = kept.read_bytes()
    for cut in (len(journal) - 1, len(journal) // 2, 30, 21, 5, 0):
        (tmp_path / "out.csv").unlink(missing_ok=True)
        (tmp_path / "out.csv.journal").write_bytes(journal[:cut])
        predict(made, tmp_path, ".csv")
        assert written(tmp_path) == expected
    flipped = bytearray(journal)
    flipped[len(journal) // 2] ^= 1
    (tmp_path / "out.csv").unlink()
    (tmp_path / "out.csv.journal").write_bytes(flipped)
    predict(made, tmp_path, ".csv")
    assert written(tmp_path) == expected


FULL = """
import os, resource
import losa_cache as lc
from tests.conftest import tiny_backbone

os.chdir({folder!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk that is full
try:
    lc.predict({adapters!r}, "photos", out="out.csv", backbone=tiny_backbone(), **{more!r})
except lc.UserError as error:
    print(error)
"""


def test_a_full_disk_keeps_what_is_done(made, tmp_path):
    copied(made, tmp_path)
    adapters, _, more = options(".csv")
    code = FULL.format(folder=str(tmp_path), adapters=[str(made / own) for own in adapters], more=more)
    done = Forked("-c", code).wait()
    assert "writing 'out.csv' failed (File too large" in done.stdout, done.stderr
    assert written(tmp_path).keys() == {"out.csv.journal"}
    assert predict(made, tmp_path, ".csv").rows == COUNT
    found = written(tmp_path)
    shutil.rmtree(tmp_path / "photos")
    for name in found:
        (tmp_path / name).unlink()
    copied(made, tmp_path)
    predict(made, tmp_path, ".csv")
    assert written(tmp_path) == found


def test_another_process_that_writes_the_output_is_waited_for(made, tmp_path):
    copied(made, tmp_path)
    (tmp_path / "out.csv.journal").touch()
    with open(tmp_path / "out.csv.journal") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(lc.UserError, match="another process is writing 'out.csv.journal'"):
            predict(made, tmp_path, ".csv")
    assert predict(made, tmp_path, ".csv").rows == COUNT


def test_a_missing_pyarrow_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(lc.UserError, match=r"^a .parquet file needs pyarrow"):
        find_format(Path("x.parquet"), embeds=False)


def test_names_that_look_alike_when_escaped_are_told_apart(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [os.fsdecode(b"inv\xff.png"), "inv\\udcff.png", "a\rb.png"]
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(names):
        picture(number).save(tmp_path / "photos" / name)
    (tmp_path / "real" / "sub").mkdir(parents=True)
    picture(7).save(tmp_path / "real" / "x.png")
    picture(8).save(tmp_path / "x.png")
    (tmp_path / "link").symlink_to("real/sub")
    listed = ["photos", "x.png", "link/../x.png"]
    found = lc.predict(str(made / "birds"), listed, out="out.csv", backbone=tiny_backbone(), device="cpu", workers=1)
    assert found.rows == 5
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == 5
    again = lc.predict(str(made / "birds"), listed, out="out.csv", backbone=tiny_backbone(), device="cpu", workers=1)
    assert (again.rows, again.skipped_count) == (5, 0)


def test_what_lies_beside_an_output_stays(made, tmp_path):
    copied(made, tmp_path)
    for word in ("old", "new"):
        (tmp_path / f"out.zarr.{word}").mkdir()
        (tmp_path / f"out.zarr.{word}" / "mine").write_text("mine")
    for _ in range(2):
        predict(made, tmp_path, ".zarr")
    assert {path.read_text() for path in tmp_path.glob("out.zarr.*/mine")} == {"mine"}
    assert len(list(tmp_path.glob("out.zarr.*/mine"))) == 2


def test_an_output_without_what_says_where_it_is_from_is_not_added_to(made, tmp_path):
    copied(made, tmp_path)
    predict(made, tmp_path, ".csv")
    (tmp_path / "out.csv.info.json").unlink()
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(lc.UserError, match=r"out\.csv\.info\.json, which says what it is from, is not there"):
        predict(made, tmp_path, ".csv")
    assert (tmp_path / "out.csv").read_bytes() == before
