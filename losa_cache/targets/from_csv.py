"""Targets from a table: a CSV file with a heading, whose first column holds ids."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError, nearest
from losa_cache.outside import UnreadableError, read_file
from losa_cache.targets.source import Progress, Source
from losa_cache.targets.target_set import CLASS, MULTILABEL, NUMBERS, UNKNOWN

MOST_BYTES = 2**30
DELIMITERS = "\t,;"  # the first of them that stands in the heading
JOINED = re.compile("[|;]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LARGEST = float(np.finfo(np.float32).max)
MARKS = {"1": 1, "0": 0, "-1": UNKNOWN, "": UNKNOWN}
ORDINAL = "ordinal"
ONE_COLUMN = "give a file without the other columns, or the --task that learns them all, multilabel or regression"

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Table(Source):
    """Targets of a table.

    Attributes:
        names: of classes, labels or columns.
        entries: a row for each id, as the values of a target set.
    """

    names: list[str]
    entries: NDArray[Any]

    def values(self, places: NDArray[np.int64], frames: object, progress: Progress) -> tuple[list[str], NDArray[Any]]:
        """Give the entries in the order of the samples."""
        values = np.full((len(places), *self.entries.shape[1:]), 0 if self.kind == NUMBERS else UNKNOWN)
        values = values.astype(self.entries.dtype)
        values[places >= 0] = self.entries[places[places >= 0]]
        progress(1.0)
        return self.names, values


def read_csv(
    path: Path, *, kind: str | None, task: str | None, columns: Sequence[str] | None, selects: bool = True
) -> Table:
    """Read a table. Classes and labels are those of the whole file, whichever of its samples are used.

    Args:
        path: of the file: a heading, then a line for each sample, its id first. Cells are separated by tabs, commas or
            semicolons, and have CSV's usual quotes.
        kind: of the target set; ``None``: as the cells say.
        task: that is to learn it. Of ``ordinal``, classes are numbers.
        columns: names of those to take; ``None``: all behind the first.
        selects: whether columns can be named where the file is: messages say how.

    Raises:
        UserError: for a file that cannot be read, a line that is not as the heading says, an id that comes twice, a
            cell that the kind does not allow, or cells of which nobody can say whether they are classes or numbers.
    """
    ids, cells = _cells(path, columns)
    reader = _Reader(path, ids, cells, "name the columns of targets with --columns" if selects else ONE_COLUMN)
    kind = reader.infer() if kind is None else kind
    names: list[str]
    entries: NDArray[Any]
    if kind == CLASS:
        names, entries = reader.classes(ordered=task == ORDINAL)
    elif kind == MULTILABEL:
        names, entries = reader.labels()
    elif kind == NUMBERS:
        names, entries = reader.numbers()
    else:
        raise UserError(f"{str(path)!r} is a file, and the task {task!r} takes a folder of pictures: name one.")
    return Table(path, kind, ids, names, entries)


@dataclass(frozen=True)
class _Reader:
    """What the cells of a table mean."""

    path: Path
    ids: list[str]
    cells: Columns
    select: str
    """What to do where one of several columns is wanted, as the end of a sentence."""

    def infer(self) -> str:
        """Say what the cells hold: one class, several labels, or numbers.

        Raises:
            UserError: where it is not clear.
        """
        if len(self.cells) > 1:
            marks = all(cell in MARKS for column in self.cells.values() for cell in column)
            return MULTILABEL if marks else NUMBERS
        ((name, column),) = self.cells.items()
        filled = [cell for cell in column if cell]
        if not filled or not all(NUMBER.fullmatch(cell) for cell in filled):
            return MULTILABEL if any(JOINED.search(cell) for cell in column) else CLASS
        if all(float(cell).is_integer() for cell in filled):
            raise UserError(
                f"column {name!r} of {str(self.path)!r} holds whole numbers, which may be classes or numbers: pass "
                "--task classification, ordinal, multilabel or regression."
            )
        return NUMBERS

    def classes(self, *, ordered: bool) -> tuple[list[str], NDArray[np.int64]]:
        """Number the classes of the only column: numbers by their value, other names by the alphabet.

        Args:
            ordered: whether their order matters: then they must be numbers.
        """
        if len(self.cells) > 1:
            raise UserError(
                f"{str(self.path)!r} has the columns {', '.join(map(repr, list(self.cells)[:3]))}, and a sample has "
                f"one class: {self.select}."
            )
        ((name, column),) = self.cells.items()
        for place, cell in enumerate(column):
            if not cell:
                raise self._bad(name, place, "a class")
            if ordered and not NUMBER.fullmatch(cell):
                raise self._bad(name, place, "a number, since ordinal classes have the order of numbers")
        known = set(column)
        numbers = all(NUMBER.fullmatch(cell) for cell in known)
        names = sorted(known, key=lambda cell: (float(cell), cell)) if numbers else sorted(known)
        if numbers and len({float(cell) for cell in known}) < len(known):
            raise UserError(f"column {name!r} of {str(self.path)!r} writes one number in two ways: write it in one.")
        place_of = {cell: place for place, cell in enumerate(names)}
        return names, np.array([place_of[cell] for cell in column], dtype=np.int64)

    def labels(self) -> tuple[list[str], NDArray[np.int8]]:
        """Read marks, a column for each label; or the names of a sample's labels, joined in the only column."""
        if len(self.cells) > 1 or all(cell in MARKS for column in self.cells.values() for cell in column):
            for name, column in self.cells.items():
                for place, cell in enumerate(column):
                    if cell not in MARKS:
                        raise self._bad(name, place, "1, 0, -1 or empty")
            marks = [[MARKS[cell] for cell in column] for column in self.cells.values()]
            return list(self.cells), np.array(marks, dtype=np.int8).T.copy()
        ((_, column),) = self.cells.items()
        split = [{name for part in JOINED.split(cell) if (name := part.strip())} for cell in column]
        names = sorted(set().union(*split))
        place_of = {name: place for place, name in enumerate(names)}
        marked = np.zeros((len(split), len(names)), dtype=np.int8)
        for place, labels in enumerate(split):
            marked[place, [place_of[name] for name in labels]] = 1
        return names, marked

    def numbers(self) -> tuple[list[str], NDArray[np.float32]]:
        """Read a number of every cell."""
        values = np.empty((len(self.ids), len(self.cells)), dtype=np.float32)
        for number, (name, column) in enumerate(self.cells.items()):
            for place, cell in enumerate(column):
                if not NUMBER.fullmatch(cell) or abs(float(cell)) > LARGEST:
                    raise self._bad(name, place, "a finite number")
                values[place, number] = float(cell)
        return list(self.cells), values

    def _bad(self, column: str, place: int, wanted: str) -> UserError:
        cell, remedy = self.cells[column][place], ""
        if len(self.cells) > 1:
            remedy = f"; if {column!r} is no target, {self.select}"
        holds = f"holds {cell[:80]!r}" if cell else "is empty"
        return UserError(
            f"column {column!r} of {str(self.path)!r} {holds} for {self.ids[place]!r}: it must be {wanted}{remedy}."
        )


def _cells(path: Path, columns: Sequence[str] | None) -> tuple[list[str], Columns]:
    """Read ids, and the cells of each column."""
    text = _text(path)
    heading = text.lstrip("\r\n").partition("\n")[0]
    delimiter = next((mark for mark in DELIMITERS if mark in heading), ",")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    try:
        for cells in lines:
            if cells:
                rows.append(cells)
                numbers.append(lines.line_num)
    except csv.Error as error:
        raise UserError(f"line {lines.line_num} of {str(path)!r} is not CSV ({error}): mend it.") from error
    first, *rest = ([cell.strip() for cell in row] for row in rows) if rows else [[]]
    if len(first) < 2 or not rest:
        raise UserError(
            f"{str(path)!r} holds no targets: it must be a line that names the columns, id first, and a line for each "
            "sample."
        )
    if twice := [name for name in first if first.count(name) > 1]:
        raise UserError(f"{str(path)!r} has the column {twice[0]!r} twice: name each once.")
    for number, row in zip(numbers[1:], rest, strict=True):
        if len(row) != len(first):
            raise UserError(f"line {number} of {str(path)!r} has {len(row)} cells, the heading {len(first)}: mend it.")
        if not row[0]:
            raise UserError(f"line {number} of {str(path)!r} has no id: add it.")
    ids = [row[0] for row in rows[1:]]
    if again := [name for name, count in Counter(ids).items() if count > 1]:
        raise UserError(
            f"{str(path)!r} has several lines for {again[0]!r}, the first of {len(again)} such ids: leave one of each."
        )
    taken = _taken(path, first[1:], columns)
    return ids, {name: [row[first.index(name)] for row in rest] for name in taken}


def _taken(path: Path, known: list[str], columns: Sequence[str] | None) -> list[str]:
    """Choose columns, and refuse names that cannot be stored."""
    taken = known if columns is None else list(columns)
    for name in taken:
        if name not in known:
            raise UserError(f"{str(path)!r} has no column {name!r}{nearest(name, known) or f': it has {known[:5]}'}.")
    if len(set(taken)) < len(taken):
        raise UserError(f"columns are {', '.join(taken)}: name each once.")
    return taken


def _text(path: Path) -> str:
    """Read UTF-8, with or without a byte order mark."""
    try:
        content = read_file(path, at_most=MOST_BYTES)
        return content.decode("utf-8-sig")
    except UnreadableError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): name a CSV file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not text in UTF-8: save it as CSV in UTF-8.") from error
