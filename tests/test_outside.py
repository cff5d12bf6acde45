import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.outside import UnreadableError, parse_json, read_file, read_json
from losa_cache.text import shown


@dataclass(frozen=True)
class _Point:
    x: int
    names: list[str]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(UnreadableError, match=kind):
            read_file(path)
    with pytest.raises(UnreadableError, match="No such file"):
        read_file(tmp_path / "none")
    with pytest.raises(UnreadableError, match="null"):
        read_file(tmp_path / "a\0b")


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", at_most=5) == b"12345"
    with pytest.raises(UnreadableError, match="larger than 4 bytes"):
        read_file(tmp_path / "file", at_most=4)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"x": 1.5, "names": []}', r"\$\.x"),
        (b'{"x": 1, "names": [1]}', r"\$\.names\[0\]"),
        (b'{"x": 1}', "names"),
        (b"null", "null"),
    ],
)
def test_json_of_another_shape_is_refused_with_its_place(raw: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(raw)
    with pytest.raises(UnreadableError, match=reason):
        read_json(tmp_path / "file.json", _Point)


def test_json_of_the_shape_is_read() -> None:
    assert parse_json('{"x": 1, "names": ["a"]}', _Point) == _Point(1, ["a"])


def test_a_name_cannot_steer_a_terminal() -> None:
    assert shown("a\x1b[2Jb\nc\u202ed\udcff") == "a\\x1b[2Jb\\nc\\u202ed\\udcff"
    assert shown("Überraschung 42 猫.png") == "Überraschung 42 猫.png"


@given(st.text())
def test_what_is_shown_prints_on_one_line_of_a_utf8_terminal(text: str) -> None:
    line = shown(text)
    assert line.splitlines() in ([], [line])
    assert line.encode().decode() == line
