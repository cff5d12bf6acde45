"""Text from outside on its way to a terminal, and tables."""

import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

NONE = "-"
"""The cell of what is not known."""
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidirectional), surrogates, line separators


def shown(text: str) -> str:
    """Give text with everything escaped that could move a cursor, hide or reorder letters, or break the encoding.

    Line breaks are escaped too: a file name must not be able to write a line of its own.
    """
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if unicodedata.category(letter) in _UNSAFE else letter
        for letter in text
    )


def few(names: Sequence[str], most: int = 5) -> str:
    """Quote the first names of many, and at most 100 letters of each, for a message."""
    return ", ".join(repr(name[:100]) for name in names[:most]) + (", ..." if len(names) > most else "")


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns, the first one flush left, the others flush right; every name in them is escaped."""
    safe = [[shown(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in safe
    )


def markdown_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write cells as a table in Markdown: the first line is its head, and the first ``left`` columns are flush left."""
    head, *others = lines
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, rule, *others)
    )


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line, by default to stdout, with every name in it escaped."""
    print(shown(text), file=stream or sys.stdout)
