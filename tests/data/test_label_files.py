"""Lists of images and videos, however editors, spreadsheets and systems leave them: all of the same lines."""

import pytest

from losa_cache.data.load import load_samples
from losa_cache.errors import UserError

LISTS = {
    "vtab": ("test", "test.txt", "images/a b.png 1\nimages/ü.png 0\nimages/c.png 2\n"),
    "places365": ("val", "places365_val.txt", "a b.jpg 1\nü.jpg 0\nc.jpg 2\n"),
    "kinetics400": ("val", "val.txt", "a b.mp4 walking\nü.mp4 running far\nc.mp4 walking\n"),
}
TABLE = 'label,youtube_id,time_start,time_end\n"one, two",abc,1,11\nüb,def,2,12\n'
LISTS["kinetics400 table"] = ("val", "val.csv", TABLE)

FORMS = {
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "lists put together": lambda text: text.replace("\n", "\n\ufeff").encode(),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "blanks behind": lambda text: text.replace("\n", " \t \n").encode(),
    "blanks before": lambda text: " " + text.replace("\n", "\n\t").encode().decode(),
    "blank lines": lambda text: ("\n \n" + text.replace("\n", "\n\t\n\n")).encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "all of it": lambda text: b"\xef\xbb\xbf\r\n" + text.rstrip("\n").replace("\n", "  \r\n\r\n").encode(),
}


def load(root, kind, content):
    split, name, _ = LISTS[kind]
    (root / "val_256").mkdir(exist_ok=True)
    (root / "categories_places365.txt").write_text("/a 0\n/b 1\n/c 2\n")
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    samples = load_samples(kind.split()[0], data_dir=root, split=split)
    return list(samples.ids), samples.labels.tolist(), samples.classes, samples.fingerprint


@pytest.mark.parametrize("kind", LISTS)
def test_lines_are_the_same_in_every_form(tmp_path, kind):
    text = LISTS[kind][2]
    plain = load(tmp_path, kind, text)
    assert len(plain[0]) == text.count("\n") - (kind == "kinetics400 table")
    for form, change in FORMS.items():
        assert load(tmp_path, kind, change(text)) == plain, form


@pytest.mark.parametrize("kind", ["vtab", "places365"])
def test_a_tab_separates_as_a_blank_does(tmp_path, kind):
    text = LISTS[kind][2]
    lines = [line.rpartition(" ") for line in text.splitlines()]
    tabs = "\n".join(f"{name}\t{label}" for name, _, label in lines)
    assert load(tmp_path, kind, tabs) == load(tmp_path, kind, text)


@pytest.mark.parametrize("kind", LISTS)
def test_what_is_no_text_is_one_sentence(tmp_path, kind):
    text = LISTS[kind][2]
    for content, reason in (
        (text.encode("utf-16"), "it is UTF-16, not UTF-8"),
        (text.replace("b", "\0").encode(), "holds a zero byte"),
        (text.encode("latin-1"), "it is not UTF-8"),
    ):
        with pytest.raises(UserError, match=reason):
            load(tmp_path, kind, content)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("again", [0, 1])
def test_a_line_that_comes_twice_is_refused_with_its_number(tmp_path, kind, again):
    lines = LISTS[kind][2].splitlines()
    twice = lines[1 + again * (len(lines) - 2)]
    with pytest.raises(UserError, match=rf"line {len(lines) + 2} of '.*' names '.*' again: leave one out"):
        load(tmp_path, kind, "\n".join([*lines, "", twice]))


def test_one_file_under_two_spellings_is_refused(tmp_path):
    with pytest.raises(UserError, match="'places365' lists 'c.jpg' twice"):
        load(tmp_path, "places365", "c.jpg 1\n/c.jpg 1\n")
    with pytest.raises(UserError, match="'places365' lists 'c.jpg' twice"):
        load(tmp_path, "places365", "/c.jpg 1\n//c.jpg 1\n")


def test_categories_in_another_order_are_refused(tmp_path):
    load(tmp_path, "places365", "c.jpg 1\n")
    (tmp_path / "categories_places365.txt").write_text("/b 1\n/a 0\n")
    with pytest.raises(UserError, match="line 1 of categories_places365.txt gives '/b' the number 1, where 0 comes"):
        load_samples("places365", data_dir=tmp_path, split="val")


@pytest.mark.parametrize("label", ["٣", "1" * 5000, "+1", "1.0"])
def test_labels_are_plain_numbers(tmp_path, label):
    with pytest.raises(UserError, match="line 1 of .* is not 'path label'"):
        load(tmp_path, "vtab", f"images/a.png {label}\n")
