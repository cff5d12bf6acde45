"""Targets from a table whose first column holds ids, or from a column of a data set's own table."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.table_file import JOINS, TableFile, open_table
from losa_cache.targets.source import Progress, Source
from losa_cache.targets.target_set import CLASS, MULTILABEL, NUMBERS, UNKNOWN

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
log = logging.getLogger(__name__)

LARGEST = float(np.finfo(np.float32).max)
MARKS = {"1": 1, "0": 0, "-1": UNKNOWN, "": UNKNOWN}
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
ORDINAL = "ordinal"
ONE_COLUMN = "give a file without the other columns, or the --task that learns them all, multilabel or regression"
BY_TASK = "pass --task classification, ordinal, multilabel or regression"
BY_KIND = "write {0}:class or {0}:numbers"

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


def read_table(
    path: Path, *, kind: str | None, task: str | None, columns: Sequence[str] | None, selects: bool = True
) -> Table:
    """Read a table. Classes and labels are those of the whole file, whichever of its samples are used.

    Args:
        path: of the file (:func:`losa_cache.table_file.open_table`), in which ids come first.
        kind: of the target set; ``None``: as the cells say.
        task: that is to learn it. Of ``ordinal``, classes are numbers.
        columns: names of those to take; ``None``: all behind the first.
        selects: whether columns can be named where the file is: messages say how.

    Raises:
        UserError: for a file that cannot be read, a line that is not as the heading says, an id that comes twice, a
            cell that the kind does not allow, or cells of which nobody can say whether they are classes or numbers.
    """
    if kind not in (None, CLASS, MULTILABEL, NUMBERS):
        raise UserError(f"{str(path)!r} is a file, and the task {task!r} takes a folder of pictures: name one.")
    table = open_table(path)
    ids, cells = _cells(table, columns)
    select = "name the columns of targets with --columns" if selects else ONE_COLUMN
    reader = _Reader(path, ids, cells, select, floating=table.floating)
    return reader.read(kind, ordered=task == ORDINAL)


def read_column(table: TableFile, name: str, rows: Sequence[int], ids: Sequence[str], *, kind: str | None) -> Table:
    """Read a column of a data set's own table as a target set of some of its rows.

    Args:
        table: of the data set.
        name: of the column.
        rows: numbers of those that are samples. Classes and labels are those of all rows, so that splits agree.
        ids: of these samples.
        kind: of the target set; ``None``: as the cells say.

    Raises:
        UserError: as of :func:`read_table`.
    """
    column = table.column(name)
    others = {name: [cell for cell in set(column) if cell]}
    cells = {name: [column[row] for row in rows]}
    reader = _Reader(table.path, ids, cells, whole=BY_KIND, others=others, floating=table.floating)
    return reader.read(kind, ordered=False)


def read_cells(path: Path, name: str, cells: Sequence[str], ids: Sequence[str], *, kind: str | None) -> Table:
    """Read cells that a data set has in another form than a table: those of column ``name``, one for each sample.

    Raises:
        UserError: as of :func:`read_table`.
    """
    return _Reader(path, ids, {name: cells}, whole=BY_KIND).read(kind, ordered=False)


def class_names(cells: Collection[str], column: str, path: Path) -> list[str]:
    """Order the names of classes: numbers by their value, other names by the alphabet.

    Args:
        cells: that name them.
        column: of the cells, for messages.
        path: of the table, for messages.

    Raises:
        UserError: for a number that is written in two ways.
    """
    known = set(cells)
    if not all(NUMBER.fullmatch(cell) for cell in known):
        return sorted(known)
    if len({_exact(cell) for cell in known}) < len(known):
        raise UserError(f"column {column!r} of {str(path)!r} writes one number in two ways: write it in one.")
    return sorted(known, key=_exact)


def _exact(number: str) -> Decimal:
    """Give the value of a number, which may be too long for a float."""
    try:
        return Decimal(number)
    except InvalidOperation:  # its exponent is
        return Decimal(float(number))


def require_no_decimal_commas(cells: Collection[str], column: str, path: Path) -> None:
    """Refuse numbers with decimal commas, which would pass for names of classes.

    Args:
        cells: of the column, none of them empty.
        column: its name, for messages.
        path: of the table, for messages.

    Raises:
        UserError: if all cells are numbers, and at least one has a decimal comma.
    """
    comma = next(filter(DECIMAL_COMMA.fullmatch, cells), None)
    if comma and all(NUMBER.fullmatch(cell) or DECIMAL_COMMA.fullmatch(cell) for cell in cells):
        raise UserError(
            f"column {column!r} of {str(path)!r} holds {comma!r}, a number with a decimal comma: write decimal points."
        )


@dataclass(frozen=True)
class _Reader:
    """What the cells of a table mean.

    Attributes:
        path: of the table, for messages.
        ids: of the samples.
        cells: of the samples, by column.
        select: what to do where one of several columns is wanted, as the end of a sentence.
        whole: what to do where whole numbers may be classes or numbers, as the end of a sentence.
        others: cells of more rows, none of them empty, whose classes count, too.
        floating: columns of which the file says that they hold floating-point numbers.
    """

    path: Path
    ids: Sequence[str]
    cells: Columns
    select: str = ""
    whole: str = BY_TASK
    others: Columns = field(default_factory=dict)
    floating: Collection[str] = ()

    def read(self, kind: str | None, *, ordered: bool) -> Table:
        """Read a target set of a kind; ``None``: of that which the cells say."""
        kind = self.infer() if kind is None else kind
        names: list[str]
        entries: NDArray[Any]
        if kind == CLASS:
            names, entries = self.classes(ordered=ordered)
        else:
            names, entries = self.labels() if kind == MULTILABEL else self.numbers()
        return Table(self.path, kind, self.ids, names, entries)

    def infer(self) -> str:
        """Say what the cells hold: one class, several labels, or numbers.

        Raises:
            UserError: where it is not clear.
        """
        if len(self.cells) > 1:
            marks = all(cell in MARKS for column in self.cells.values() for cell in column)
            return MULTILABEL if marks else NUMBERS
        ((name, column),) = self.cells.items()
        column = [*column, *self.others.get(name, ())]
        if name in self.floating:
            return NUMBERS
        filled = [cell for cell in column if cell]
        require_no_decimal_commas(filled, name, self.path)
        if not filled or not all(NUMBER.fullmatch(cell) for cell in filled):
            if not any(JOINS.search(cell) for cell in filled):
                return CLASS
            self._say_semicolon(name, filled)
            return MULTILABEL
        if all(float(cell).is_integer() for cell in filled):
            raise UserError(
                f"column {name!r} of {str(self.path)!r} holds whole numbers, which may be classes or numbers: "
                f"{self.whole.format(name)}."
            )
        return NUMBERS

    def _say_semicolon(self, name: str, cells: Sequence[str]) -> None:
        """Warn where text may be one class: a semicolon, unlike a bar, is also punctuation."""
        if (cell := next((cell for cell in cells if ";" in cell), None)) is not None:
            log.warning(
                "column %r of %r holds %r, which is taken for several labels: if it is one class, %s.",
                name,
                str(self.path),
                cell[:80],
                f"write {name}:class" if self.whole == BY_KIND else "pass --task classification",
            )

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
        names = class_names([*column, *self.others.get(name, ())], name, self.path)
        place_of = {cell: place for place, cell in enumerate(names)}
        return names, np.array([place_of[cell] for cell in column], dtype=np.int64)

    def labels(self) -> tuple[list[str], NDArray[np.int8]]:
        """Read marks, a column for each label; or the names of a sample's labels, joined in the only column."""
        every = [cell for columns in (self.cells, self.others) for column in columns.values() for cell in column]
        if len(self.cells) > 1 or all(cell in MARKS for cell in every):
            for name, column in self.cells.items():
                for place, cell in enumerate(column):
                    if cell not in MARKS:
                        raise self._bad(name, place, "1, 0, -1 or empty")
            marks = [[MARKS[cell] for cell in column] for column in self.cells.values()]
            return list(self.cells), np.array(marks, dtype=np.int8).T.copy()
        ((title, column),) = self.cells.items()
        commas = [cell for cell in every if "," in cell]
        if len(commas) > 1 and not any(JOINS.search(cell) for cell in every):
            bars = "|".join(part.strip() for part in commas[0].split(","))
            raise UserError(
                f"column {title!r} of {str(self.path)!r} holds {commas[0][:80]!r}, and labels are joined by | or ;: "
                f"write {bars[:80]!r}, or put a bar behind it if it is one label."
            )
        split = [_joined(cell) for cell in column]
        names = sorted(set().union(*split, *map(_joined, self.others.get(title, ()))))
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
        if DECIMAL_COMMA.fullmatch(cell):
            wanted += ", with a decimal point in place of the comma"
        holds = f"holds {cell[:80]!r}" if cell else "is empty"
        return UserError(
            f"column {column!r} of {str(self.path)!r} {holds} for {self.ids[place]!r}: it must be {wanted}{remedy}."
        )


def _joined(cell: str) -> set[str]:
    return {name for part in JOINS.split(cell) if (name := part.strip())}


def _cells(table: TableFile, columns: Sequence[str] | None) -> tuple[list[str], Columns]:
    """Read ids, and the cells of each column."""
    path = table.path
    if len(table.names) < 2 or not len(table):
        raise UserError(
            f"{str(path)!r} holds no targets: it must be a line that names the columns, id first, and a line for each "
            "sample."
        )
    ids = table.column(table.names[0])
    if "" in ids:
        raise UserError(f"{table.where(ids.index(''))} has no id: add it.")
    if again := [name for name, count in Counter(ids).items() if count > 1]:
        raise UserError(
            f"{str(path)!r} has several lines for {again[0]!r}, the first of {len(again)} such ids: leave one of each."
        )
    taken = table.names[1:] if columns is None else list(columns)
    if len(set(taken)) < len(taken):
        raise UserError(f"columns are {', '.join(taken)}: name each once.")
    return ids, {name: table.column(name) for name in taken}
