"""Images, folders, patterns, videos and lists of paths, as one stream of items."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic, iglob
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from losa_cache.apply.predict.table import plain
from losa_cache.apply.predict.walk import walk
from losa_cache.data import medical, video
from losa_cache.data.columns import IMAGE, NAMES, SPLIT
from losa_cache.data.sources.folder import EXTENSIONS
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, open_file
from losa_cache.table_file import JSON_LINES, PARQUET, SUFFIXES, forward_slashes, open_table, parse_csv

LISTS = SUFFIXES
"""How the names of lists and tables of paths end."""
OTHERS = (*JSON_LINES, *PARQUET)
"""Those that always have named columns."""
LONGEST = 2**20  # bytes of a heading
Say = Callable[[str], None]
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


def items(inputs: Sequence[str], say: Say = lambda _: None) -> Iterator[Item]:
    """Give the images and videos of inputs, one after the other; some may come twice.

    Files come in the order given, those of a folder in that of :func:`walk`, those of a pattern sorted. What a folder
    or a list holds is not looked at before its turn.

    Args:
        inputs: files, folders, patterns and tables of paths.
        say: is told what may surprise.

    Raises:
        UserError: for a pattern that nothing matches, and for a video where PyAV is not installed.
    """
    for word in inputs:
        for item in _of(word, say):
            if item.is_video and not item.problem and find_spec("av") is None:
                raise UserError(f"{item.id!r} is a video, which needs PyAV: pip install 'losa-cache[video]'.")
            yield item


def _of(word: str, say: Say) -> Iterator[Item]:
    if has_magic(word) and not os.path.lexists(word):
        matches = sorted(iglob(word, recursive=True))
        if not matches:
            raise UserError(f"nothing matches {word!r}: check the pattern.")
        for match in matches:
            yield from _at(Path(match), say)
    else:
        yield from _at(Path(word), say)


def _at(path: Path, say: Say) -> Iterator[Item]:
    if path.is_dir():
        yield from _below(path)
    elif path.suffix.lower() in LISTS:
        yield from _listed(path, say)
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


def _listed(path: Path, say: Say) -> Iterator[Item]:
    """Give the files of a table or a list. Their paths are relative to its folder.

    They stand in the column whose heading is one of ``COLUMNS``. A CSV file without such a heading is a list of paths,
    in its first column.
    """
    try:
        cells = _listed_in_table(path, say)
        yield from (_item(path.parent / cell) for cell in (_plain_list(path) if cells is None else cells) if cell)
    except (OSError, UnreadableError, csv.Error) as error:
        yield _item(path, f"the list cannot be read: {getattr(error, 'strerror', None) or error}")
    except UserError as error:
        yield _item(path, f"the table cannot be read: {str(error).removesuffix('.')}")


def _listed_in_table(path: Path, say: Say) -> list[str] | None:
    """Give the paths that a table names; ``None``: it is a list without a heading.

    Raises:
        UserError: for a table that cannot be read or, if it is no CSV file, has no column of paths.
    """
    if path.suffix.lower() not in OTHERS and not {*COLUMNS} & {*map(str.lower, _heading(path))}:
        return None
    table = open_table(path)
    known = {name.lower(): name for name in table.names}
    column = next((known[name] for name in COLUMNS if name in known), None)
    if column is None:
        raise UserError(f"{str(path)!r} has no column of paths ({', '.join(COLUMNS)}): rename the one that holds them.")
    if any(name in known for name in NAMES[SPLIT]):
        say(f"{str(path)!r} has a column of splits, and all its {len(table)} rows are predicted, whatever their split.")
    return forward_slashes(table.column(column))


def _heading(path: Path) -> list[str]:
    """Give the cells of the first line, as :mod:`losa_cache.table_file` reads a heading; none if it cannot be one."""
    with open_file(path) as file:  # no pipe that would be waited for
        first = file.readline(LONGEST).decode("utf-8-sig", "surrogateescape")
    try:
        return parse_csv(first, path)[0]
    except UserError:  # of a heading open_table says what is wrong, and a list may have it
        return [cell.strip() for cell in next(csv.reader([first]), [])]


def _plain_list(path: Path) -> Iterator[str]:
    """Give the first cells of the lines of a CSV file."""
    with TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from (line[0] for line in csv.reader(file) if line and line[0].strip())


def _item(path: Path, problem: str = "") -> Item:
    name = os.path.normpath(path)
    if ".." in path.parts and os.path.realpath(path) != os.path.realpath(name):  # it leads elsewhere behind a link
        name = str(path)
    return Item(plain(name), path, problem)
