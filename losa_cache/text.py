"""Text from outside on its way to a terminal."""

import sys
import unicodedata
from typing import TextIO

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidirectional), surrogates, line separators


def shown(text: str) -> str:
    """Give text with everything escaped that could move a cursor, hide or reorder letters, or break the encoding.

    Line breaks are escaped too: a file name must not be able to write a line of its own.
    """
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if unicodedata.category(letter) in _UNSAFE else letter
        for letter in text
    )


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line, by default to stdout, with every name in it escaped."""
    print(shown(text), file=stream or sys.stdout)
