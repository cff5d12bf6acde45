"""Targets from tables: what the cells say, and what is refused."""

import csv
import io
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from losa_cache.errors import UserError
from losa_cache.targets.choose import choose_targets, tasks_of
from losa_cache.targets.match import match
from losa_cache.targets.read import default_name, open_source, read_targets
from losa_cache.targets.target_set import CLASS, MULTILABEL, NUMBERS
from losa_cache.tasks import get_task

IDS = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]


def read(tmp_path, text, ids=IDS, subset=False, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_targets(open_source(path, **options), ids, subset=subset)


def table(*rows, delimiter=","):
    """What a spreadsheet writes."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


READ = {
    "classes by name": (
        table(["id", "species"], *zip(IDS, ["tom", "amy", "tom"], strict=True)),
        None,
        (CLASS, ["amy", "tom"], [1, 0, 1]),
    ),
    "numbered classes by value": (
        table(["id", "grade"], *zip(IDS, ["10", "9", "2"], strict=True)),
        "classification",
        (CLASS, ["2", "9", "10"], [2, 1, 0]),
    ),
    "ordered classes": (
        table(["id", "grade"], *zip(IDS, ["0.5", "-1", "3"], strict=True)),
        "ordinal",
        (CLASS, ["-1", "0.5", "3"], [1, 0, 2]),
    ),
    "marks": (
        table(["id", "sun", "rain"], [IDS[0], 1, ""], [IDS[1], -1, 0], [IDS[2], 0, 1]),
        None,
        (MULTILABEL, ["sun", "rain"], [[1, -1], [-1, 0], [0, 1]]),
    ),
    "one column of marks": (
        table(["id", "sun"], *zip(IDS, [1, 0, ""], strict=True)),
        "multilabel",
        (MULTILABEL, ["sun"], [[1], [0], [-1]]),
    ),
    "joined labels": (
        table(["id", "weather"], *zip(IDS, ["sun|wind", "", " wind ; rain"], strict=True)),
        None,
        (MULTILABEL, ["rain", "sun", "wind"], [[0, 1, 1], [0, 0, 0], [1, 0, 1]]),
    ),
    "numbers, in another order, with semicolons and a byte order mark": (
        "\ufeff" + table(["id", "x", "y"], [IDS[2], 3, "-1e2"], [IDS[0], 1.5, 0], [IDS[1], ".5", 7], delimiter=";"),
        None,
        (NUMBERS, ["x", "y"], [[1.5, 0], [0.5, 7], [3, -100]]),
    ),
    "fractions": (table(["id", "x"], *zip(IDS, [1, 2.5, 3], strict=True)), None, (NUMBERS, ["x"], [[1], [2.5], [3]])),
    "marks that are numbers": (
        table(["id", "x", "y"], *[[name, 0, 1] for name in IDS]),
        "regression",
        (NUMBERS, ["x", "y"], [[0, 1]] * 3),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_the_cells_say_what_they_are(tmp_path, case):
    text, task, (kind, names, values) = READ[case]
    found = read(tmp_path, text, task=task)
    assert (found.kind, list(found.names), found.values.tolist()) == (kind, names, values)
    assert found.name == "table"


GOOD = table(["id", "x"], *[[name, 0.5] for name in IDS])
REFUSED = {
    "whole numbers": (
        table(["id", "n"], *zip(IDS, [1, 2, 3], strict=True)),
        {},
        "may be classes or numbers: pass --task",
    ),
    "text among numbers": (table(["p", "n", "s"], *[[i, 1, "test"] for i in IDS]), {}, "'s' .*'test'.*--columns"),
    "a number that is none": (GOOD.replace("0.5", "nan", 1), {"task": "regression"}, "'nan' for 'cat/1.jpg'.* finite"),
    "infinity": (GOOD.replace("0.5", "1e39", 1), {}, "'1e39' .* finite number"),
    "an empty number": (
        GOOD.replace("0.5", "", 1),
        {"task": "regression"},
        "is empty for 'cat/1.jpg': it must be a finite number",
    ),
    "no class": (GOOD.replace("0.5", "", 1), {"task": "classification"}, "must be a class"),
    "a name as an ordered class": (GOOD.replace("0.5", "low", 1), {"task": "ordinal"}, "'low' .* order of numbers"),
    "a number in two ways": (GOOD.replace("0.5", "0.50", 1), {"task": "ordinal"}, "one number in two ways"),
    "labels joined by commas": (
        table(["id", "tags"], *zip(IDS, ["sun, rain", "rain", "rain, wind"], strict=True)),
        {"task": "multilabel"},
        r"'tags' .* 'sun, rain', and labels are joined by \| or ;: write 'sun\|rain'",
    ),
    "another mark": (table(["i", "a", "b"], *[[i, 2, 1] for i in IDS]), {"task": "multilabel"}, "'2'.* 1, 0, -1 or"),
    "two columns of classes": (
        READ["marks"][0],
        {"task": "classification"},
        "has the columns 'sun', 'rain'.*one class",
    ),
    "an unknown column": (GOOD, {"columns": ["y"]}, "no column 'y'.*'x'"),
    "a column twice": (GOOD.replace("id,x", "id,id"), {}, "has the column 'id' twice"),
    "an id twice": (GOOD + f"{IDS[1]},3.5\n", {}, r"several lines for 'cat/2.jpg', the first of 1"),
    "no id": (GOOD.replace(IDS[1], ""), {}, "line 3 .* has no id"),
    "a short line": (GOOD + "cat\n", {}, "line 5 .* has 1 cells, the heading 2"),
    "an open quote": (GOOD + '"cat', {}, "line 5 .* is not CSV"),
    "a heading alone": ("id,x\n", {}, "holds no targets"),
    "nothing": ("", {}, "holds no targets"),
    "another encoding": (GOOD.encode("utf-16"), {}, "UTF-16, not UTF-8"),
    "a missing sample": ("\n".join(GOOD.splitlines()[:3]), {}, "1 of 3 samples have no target .* 'dog/1.jpg'"),
    "one too many": (
        GOOD + "cat/9.jpg,1.5\n",
        {},
        "targets of 1 samples that are not here.* 'cat/9.jpg': pass --subset",
    ),
    "a task of pictures": (GOOD, {"task": "depth"}, "is a file, and the task 'depth' takes a folder"),
    "an unknown task": (GOOD, {"task": "regresion"}, "unknown task 'regresion'"),
    "a value of masks": (GOOD, {"ignore": 3}, "ignore is 3, a value of masks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence_with_its_value(tmp_path, case):
    text, options, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as told:
        read(tmp_path, text, **options)
    assert str(told.value).count("\n") == 0


def test_a_type_of_floats_says_numbers_where_the_cells_do_not(tmp_path):
    for name, cells in (("real.parquet", [1.0, 2.0, 3.0]), ("whole.parquet", [1, 2, 3])):
        parquet.write_table(pa.table({"id": IDS, "x": cells}), tmp_path / name)
    assert read_targets(open_source(tmp_path / "real.parquet"), IDS).kind == NUMBERS
    with pytest.raises(UserError, match="may be classes or numbers"):
        open_source(tmp_path / "whole.parquet")


def places(given, ids, **options):
    return match(given, ids, range(len(ids)), source="t.csv", **({"subset": False} | options))


def test_ids_match_by_the_strictest_rule_that_finds_all():
    assert places(["b", "a"], ["a", "b"]).places.tolist() == [1, 0]
    whole = places(["train/cat/1.jpg", "train/dog/1.jpg"], ["dog/1.jpg", "cat/1.jpg"])
    assert (whole.places.tolist(), whole.rule) == ([1, 0], "paths' ends")
    assert places(["1.jpg", "2.jpg"], ["x/2.jpg", "y/1.jpg"]).places.tolist() == [1, 0]
    assert places([r"C:\old\2.jpg", r"C:\old\1.jpg"], ["1.jpg", "2.jpg"]).places.tolist() == [1, 0]
    masks = places(["m/1.png", "m/2.png"], ["images/2.jpg", "images/1.jpg"])
    assert (masks.places.tolist(), masks.rule) == ([1, 0], "file names without suffix")
    both = places(
        ["test/cat/1.jpg", "train/cat/1.jpg", "train/cat/2.jpg"], ["cat/2.jpg", "train/cat/1.jpg"], subset=True
    )
    assert (both.places.tolist(), both.left) == ([2, 1], 1)


def test_what_is_not_clear_is_refused():
    with pytest.raises(UserError, match=r"1 of 2 samples have no target .* 'b/1.jpg'"):  # 1.jpg may be of either
        places(["1.jpg", "a/1.jpg"], ["a/1.jpg", "b/1.jpg"])
    with pytest.raises(UserError, match=r"'x/1.png' and 'y/1.png' .* are both the sample '1.jpg'"):
        places(["x/1.png", "y/1.png"], ["1.jpg"])


def test_a_sample_that_was_skipped_needs_no_target(tmp_path):
    (tmp_path / "labels.csv").write_text(table(["id", "x"], [IDS[0], 0.5], [IDS[2], 1.5]))
    source = open_source(tmp_path / "labels.csv")
    found = read_targets(source, IDS, wanted=[0, 2])
    np.testing.assert_array_equal(found.values, np.float32([[0.5], [0], [1.5]]))
    assert default_name(source) == "numbers"  # "labels" is the name of the cache's own


def test_what_is_there_is_not_waited_for_or_guessed(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="it is a named pipe"):
        open_source(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="there is no file or folder"):
        open_source(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r"holds no masks \(.png\)"):
        open_source(tmp_path)
    (tmp_path / "1.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no masks .* 1 files .* such as '1.npy': pass --task depth"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="is a folder, and the task 'regression' takes a table"):
        open_source(tmp_path, task="regression")


def test_a_column_with_an_empty_cell_among_numbers_is_one_of_numbers(tmp_path):
    (tmp_path / "height.csv").write_text("id,height\na,1.5\nb,\n")
    with pytest.raises(UserError, match="column 'height' of .* is empty for 'b': it must be a finite number"):
        open_source(tmp_path / "height.csv")


def test_where_columns_cannot_be_named_nothing_says_so(tmp_path):
    (tmp_path / "two.csv").write_text("id,sun,rain\na,1,0\n")
    with pytest.raises(UserError, match="a sample has one class: give a file without the other columns, or the --task"):
        open_source(tmp_path / "two.csv", task="classification", selects=False)


def test_classes_of_masks_are_those_of_every_folder_of_them(tmp_path):
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"")
        (tmp_path / folder / "classes.txt").write_text("sky\nroad\n")
    assert open_source(tmp_path).names == ["sky", "road"]
    (tmp_path / "test/classes.txt").write_text("road\nsky\n")
    with pytest.raises(UserError, match="test/classes.txt' and .*train/classes.txt' name different classes"):
        open_source(tmp_path)
    for folder in ("train", "test"):
        (tmp_path / folder / "classes.txt").unlink()
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    assert open_source(tmp_path / "train").names == ["ground", "tree"]


def test_labels_of_one_class_give_way_to_the_target_set_that_the_task_learns():
    one, kinds = ["unlabelled"], {"labels": "class", "weather": "multilabel", "site": "class", "species": "class"}
    task = get_task("classification")
    assert choose_targets(task, kinds, "cache 'x'", classes=["a", "b"]) == "labels"
    assert choose_targets(task, kinds, "cache 'x'", classes=one, groups="site") == "species"
    with pytest.raises(UserError, match="several target sets .* choose one with --targets: site, species"):
        choose_targets(task, kinds, "cache 'x'", classes=one)
    with pytest.raises(UserError, match=r"are all 'unlabelled', .* \(weather: --task multilabel; m: --task segment"):
        choose_targets(task, {"labels": "class", "weather": "multilabel", "m": "mask"}, "cache 'x'", classes=one)
    with pytest.raises(UserError, match="of cache 'x' are all .* two classes: add others with losa-cache targets"):
        choose_targets(task, {"labels": "class"}, "cache 'x'", classes=one)
    assert tasks_of("class") == ["classification", "ordinal"]
