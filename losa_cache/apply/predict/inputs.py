"""Images, folders, patterns, videos and lists of paths, as one stream of items."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic, iglob
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from losa_cache.apply.predict.table import plain
from losa_cache.apply.predict.walk import walk
from losa_cache.data import medical, video
from losa_cache.data.columns import IMAGE, NAMES
from losa_cache.data.sources.folder import EXTENSIONS
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, open_file

LIST = ".csv"
COLUMNS = (*NAMES[IMAGE], "id")
"""Headings of the column of a list that holds the paths."""


@dataclass(frozen=True)
class Item:
    """An image or a video.

    Attributes:
        id: its path, as the row of the output has it.
        path: its file.
        problem: why there is nothing to decode; empty: it is to be tried.
    """

    id: str
    path: Path
    problem: str = ""

    @property
    def is_video(self) -> bool:
        """Whether its name is that of a video."""
        return self.path.name.lower().endswith(video.EXTENSIONS)


def items(inputs: Sequence[str]) -> Iterator[Item]:
    """Give the images and videos of inputs, one after the other; some may come twice.

    Files come in the order given, those of a folder in that of :func:`walk`, those of a pattern sorted. What a folder
    or a list holds is not looked at before its turn.

    Raises:
        UserError: for a pattern that nothing matches, and for a video where PyAV is not installed.
    """
    for word in inputs:
        for item in _of(word):
            if item.is_video and not item.problem and find_spec("av") is None:
                raise UserError(f"{item.id!r} is a video, which needs PyAV: pip install 'losa-cache[video]'.")
            yield item


def _of(word: str) -> Iterator[Item]:
    if has_magic(word) and not os.path.lexists(word):
        matches = sorted(iglob(word, recursive=True))
        if not matches:
            raise UserError(f"nothing matches {word!r}: check the pattern.")
        for match in matches:
            yield from _at(Path(match))
    else:
        yield from _at(Path(word))


def _at(path: Path) -> Iterator[Item]:
    if path.is_dir():
        yield from _below(path)
    elif path.suffix.lower() == LIST:
        yield from _listed(path)
    else:
        yield _item(path)


def _below(folder: Path) -> Iterator[Item]:
    unread: list[tuple[Path, str]] = []
    empty = True
    for path in walk(folder, EXTENSIONS + medical.SUFFIXES + video.EXTENSIONS, unread):
        empty = False
        yield _item(path)
    for path, reason in unread:
        yield _item(path, f"the folder cannot be read: {reason}")
    if empty and not unread:
        yield _item(folder, "the folder holds no images or videos")


def _listed(path: Path) -> Iterator[Item]:
    """Give the files of a list. Their paths are relative to its folder.

    They stand in the column whose heading is one of ``COLUMNS``, or without such a heading in the first.
    """
    try:
        binary = open_file(path)  # no pipe that would be waited for
        with TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            column = 0
            for number, line in enumerate(csv.reader(file)):
                names = [cell.strip().lower() for cell in line]
                if number == 0 and (heading := next((name for name in COLUMNS if name in names), None)):
                    column = names.index(heading)
                elif column < len(line) and line[column].strip():
                    yield _item(path.parent / line[column])
    except (OSError, UnreadableError, csv.Error) as error:
        yield _item(path, f"the list cannot be read: {getattr(error, 'strerror', None) or error}")


def _item(path: Path, problem: str = "") -> Item:
    name = os.path.normpath(path)
    if ".." in path.parts and os.path.realpath(path) != os.path.realpath(name):  # it leads elsewhere behind a link
        name = str(path)
    return Item(plain(name), path, problem)
