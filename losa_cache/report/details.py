"""What a task shows of its predictions: tables and charts, as data. Nothing here imports torch or matplotlib."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | None
"""``None``: not defined."""
NOTHING = "\N{EN DASH}"
"""What people see in its place."""


def defined(value: float) -> float | None:
    """Give a number, or ``None`` in place of NaN."""
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Table:
    """A table, a line for each class, label or column.

    Attributes:
        name: of its file, without a suffix.
        caption: what it holds, as a sentence.
        head: names of the columns.
        rows: its lines.
    """

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def records(self) -> list[dict[str, Any]]:
        """Give every line as an object of JSON."""
        return [dict(zip(self.head, row, strict=True)) for row in self.rows]

    def csv(self) -> bytes:
        """Write it as CSV (RFC 4180, UTF-8); what is not defined is empty."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows([self.head, *self.rows])
        return text.getvalue().encode("utf-8", "surrogateescape")

    def shown(self) -> list[list[str]]:
        """Write its lines for people."""
        return [[cell(value) for value in row] for row in self.rows]


def cell(value: Cell) -> str:
    """Write a cell for people."""
    return NOTHING if value is None else f"{value:.3f}" if isinstance(value, float) else f"{value}"


class Chart(Protocol):
    """A chart of a report."""

    @property
    def name(self) -> str:
        """The name of its file, without a suffix."""

    @property
    def caption(self) -> str:
        """What it shows, as a sentence."""

    def draw(self) -> "Figure":
        """Draw it with matplotlib."""


@dataclass(frozen=True)
class Details:
    """What a task shows of its predictions.

    Attributes:
        tables: with a line for each class, label or column.
        charts: drawn only for a report.
    """

    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
