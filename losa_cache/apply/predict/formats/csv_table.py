"""CSV: a header, then a line an input. UTF-8, quoted where a cell needs it (RFC 4180), line feeds."""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from losa_cache.apply.predict.formats.base import ROWS, Format
from losa_cache.apply.predict.table import Rows, Table
from losa_cache.files import replacing


class CsvTable(Format):
    """Columns ``id``, and of each adapter ``NAME.class_1``, ``NAME.probability_1``, ``NAME.class_2``, ..."""

    suffix = ".csv"
    predictions = True

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; the header must be that of the table."""
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            try:
                header = next(lines, [])
                if header != table.columns:
                    raise ValueError(f"it has the columns {', '.join(header)[:200] or 'of an empty file'}")
                while part := list(islice(lines, ROWS)):
                    yield table.from_cells(part)
            except csv.Error as error:
                raise ValueError(f"it is no CSV ({error})") from error

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write header and rows."""
        with replacing(path) as file:
            file.write(_text([table.columns]))
            for part in rows:
                file.write(_text(table.cells(part)))


def _text(lines: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(lines)  # as RFC 4180 has it; then \r is quoted, too
    return text.getvalue().encode()


FORMAT = CsvTable()
