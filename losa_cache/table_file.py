"""Tables from outside, every cell as text: CSV with its usual delimiters, JSON lines, Parquet."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from losa_cache.errors import UserError, nearest
from losa_cache.extras import extra
from losa_cache.outside import UnreadableError, decoded, read_file, require_regular
from losa_cache.text import few

JSON_LINES, PARQUET = (".jsonl", ".ndjson"), (".parquet",)
SUFFIXES = (".csv", ".tsv", *JSON_LINES, *PARQUET)
"""How the names of tables end."""
MOST_BYTES = 2**30
JOIN, JOINS = "|", re.compile("[|;]")
"""What joins the entries of a list, which a cell of JSON lines or Parquet may be; and what labels in a text."""

_DELIMITERS = "\t,;|"  # the first of them that stands in the heading, outside of quotes
_QUOTED = re.compile(r'"[^"]*"')


@dataclass(frozen=True)
class TableFile:
    """A table with named columns.

    Attributes:
        path: of the file.
        names: of the columns, in order.
        lines: for each row the number of its line, from 1; in Parquet, which has no lines, that of the row.
        read: gives the cells of a column, without surrounding blanks; a missing cell is empty.
        floating: the columns that hold floating-point numbers, where the file has a type of each column.
    """

    path: Path
    names: list[str]
    lines: Sequence[int]
    read: Callable[[str], list[str]]
    floating: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> list[str]:
        """Give the cells of a column.

        Raises:
            UserError: if there is no such column, or a cell is neither text nor a number nor a list of these.
        """
        if name not in self.names:
            raise UserError(
                f"{str(self.path)!r} has no column {name!r}{nearest(name, self.names)}; it has {few(self.names)}."
            )
        return self.read(name)

    def where(self, row: int) -> str:
        """Name a row, for messages."""
        kind = "row" if self.path.suffix.lower() in PARQUET else "line"
        return f"{kind} {self.lines[row]} of {str(self.path)!r}"


def open_table(path: Path) -> TableFile:
    """Open a table by how its name ends: Parquet and JSON lines by their suffixes, anything else as CSV.

    Args:
        path: of the file. CSV has a heading and is UTF-8, with or without a byte order mark; its delimiter is a tab, a
            comma, a semicolon or a bar, whichever stands in the heading. JSON lines are an object a line.

    Raises:
        UserError: for a file that cannot be read, or a line that is not as it should be.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in PARQUET:
            require_regular(path)
            return _open_parquet(path)
        content = decoded(read_file(path, at_most=MOST_BYTES))
    except UnreadableError as error:
        wanted = "Parquet" if suffix in PARQUET else "UTF-8, which spreadsheets call 'CSV UTF-8'"
        raise UserError(f"{str(path)!r} cannot be read ({error}): name a table in {wanted}.") from error
    return _open_json_lines(path, content) if suffix in JSON_LINES else _open_csv(path, content)


def forward_slashes(paths: Sequence[str]) -> list[str]:
    """Write paths as this machine does where Windows wrote them: with backslashes in some, and slashes in none."""
    windows = any("\\" in path for path in paths) and not any("/" in path for path in paths)
    return [path.replace("\\", "/") for path in paths] if windows else list(paths)


def parse_csv(text: str, path: object) -> tuple[list[str], list[int], list[list[str]]]:
    """Parse CSV with a heading and CSV's usual quotes; blank lines do not count.

    Args:
        text: of the file.
        path: of the file, for messages.

    Returns:
        the heading, without blanks around its names; the number of each row's line; and the rows.

    Raises:
        UserError: for a line that is not CSV or has another number of cells than the heading, and for two columns of
            one name.
    """
    heading = _QUOTED.sub("", text.lstrip("\r\n").partition("\n")[0].partition("\r")[0])
    delimiter = next((mark for mark in _DELIMITERS if mark in heading), ",")
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
    names = [cell.strip() for cell in rows.pop(0)] if rows else []
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(f"{str(path)!r} has the column {twice[0]!r} twice: name each once.")
    for number, row in zip(numbers[1:], rows, strict=True):
        if len(row) != len(names):
            raise UserError(f"line {number} of {str(path)!r} has {len(row)} cells, the heading {len(names)}: mend it.")
    return names, numbers[1:], rows


def _open_csv(path: Path, text: str) -> TableFile:
    names, lines, rows = parse_csv(text, path)

    def read(name: str) -> list[str]:
        place = names.index(name)
        return [row[place].strip() for row in rows]

    return TableFile(path, names, lines, read)


def _open_json_lines(path: Path, text: str) -> TableFile:
    entries: list[dict[str, Any]] = []
    lines: list[int] = []
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append(decode(line))
            except (msgspec.MsgspecError, RecursionError) as error:
                raise UserError(f"line {number} of {str(path)!r} is no JSON object ({error}): mend it.") from error
            lines.append(number)
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    return TableFile(path, names, lines, lambda name: _texts((entry.get(name) for entry in entries), name, path))


def _open_parquet(path: Path) -> TableFile:
    with extra("pyarrow", "tables in Parquet need pyarrow", "parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        file = parquet.ParquetFile(path)
        schema, count = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableError(str(error).partition("\n")[0]) from error

    def read(name: str) -> list[str]:
        try:
            cells = file.read(columns=[name]).column(name).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"column {name!r} of {str(path)!r} cannot be read ({error}): write it again.") from error
        return _texts(cells, name, path)

    floating = frozenset(own.name for own in schema if pyarrow.types.is_floating(own.type))
    return TableFile(path, list(schema.names), range(1, count + 1), read, floating)


def _texts(cells: Any, name: str, path: Path) -> list[str]:
    try:
        return [_text(cell) for cell in cells]
    except TypeError as error:
        raise UserError(
            f"column {name!r} of {str(path)!r} holds {error}: a cell is text, a number, or a list of these."
        ) from error


def _text(cell: object) -> str:
    """Write a cell as CSV has it."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, str | int | float):
        return str(cell).strip()
    if isinstance(cell, list):
        return JOIN.join(map(_entry, cell))
    raise TypeError(f"a cell of the type {type(cell).__name__}")


def _entry(entry: object) -> str:
    """Write an entry of a list."""
    if isinstance(entry, list):
        raise TypeError("a list in a list")
    text = _text(entry)
    if JOINS.search(text):
        raise TypeError(f"a list with the entry {text[:80]!r}, which would be two (| and ; join entries)")
    return text
