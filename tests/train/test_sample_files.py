"""Files that choose samples, as spreadsheets, shells and file systems write them."""

import csv

import pytest

from losa_cache.errors import UserError
from losa_cache.train.sample_files import parse_ids, parse_weights, read_sample_file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_weights_are_read_as_a_csv_writer_wrote_them(tmp_path, end, mark):
    weights = {"ant/1.jpg": 0.5, 'a "b", c.jpg': 0.0, "été.jpg": 1e-3, "caf\udce9.jpg": 4.0, "id": 1.0}
    with open(tmp_path / "w.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(mark)
        csv.writer(file, lineterminator=end).writerows([("id", "weight"), *weights.items()])
    assert parse_weights(read_sample_file(str(tmp_path / "w.csv"), "sampling"), "w.csv") == weights


@pytest.mark.parametrize("text", ["b\r\n\r\na 1\r\n", "b\na 1", "\ufeff\nb\n\na 1\n\n"])
def test_ids_are_lines(text):
    assert parse_ids(text.encode(), "ids.txt") == ["b", "a 1"]


BAD = {
    "": "'w.csv' must begin with the line id,weight",
    "a,1\n": "must begin with the line id,weight",
    "weight,id\n1,a\n": "must begin with the line id,weight",
    "id,weight\na,1\nb,-0.5\n": "line 3 of 'w.csv' is 'b,-0.5': it must be an id and a weight, finite",
    "id,weight\na,nan\n": "line 2 of 'w.csv' is 'a,nan'",
    "id,weight\na,inf\n": "line 2 of 'w.csv' is 'a,inf'",
    "id,weight\na,much\n": "line 2 of 'w.csv' is 'a,much'",
    "id,weight\na\n": "line 2 of 'w.csv' has 1 cells, the heading 2",
    "id,weight\na,b,1\n": "line 2 of 'w.csv' has 3 cells, the heading 2",
    "id,weight\na,1\nb,1\na,1\n": "line 4 of 'w.csv' weighs 'a' again",
    'id,weight\n"a,1\n': "line 2 of 'w.csv' is not CSV",
}


@pytest.mark.parametrize("text", BAD)
def test_other_weights_are_refused_by_line(text):
    with pytest.raises(UserError) as error:
        parse_weights(text.encode(), "w.csv")
    assert BAD[text] in str(error.value)


def test_a_file_without_ids_or_none_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'ids\.txt' holds no ids"):
        parse_ids(b"\r\n\n", "ids.txt")
    with pytest.raises(UserError, match="val-ids is .* cannot be read .*directory"):
        read_sample_file(str(tmp_path), "val-ids")
