"""Text files that list images in lines ``path label``, as any editor or spreadsheet writes them."""

import os
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, decoded, read_file

MOST_BYTES = 1024 * 1024 * 1024  # 20 million lines
_MOST_DIGITS = 15


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, each with its number and without surrounding blanks.

    Byte order marks are removed, also those within a file that was joined from others. Lines may end as on any system,
    and the last line need not end.

    Args:
        path: of the file, in UTF-8.

    Raises:
        UnreadableError: if it cannot be read, or is no UTF-8 text.
    """
    text = decoded(read_file(path, at_most=MOST_BYTES))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    stripped = (line.lstrip("\ufeff").strip() for line in lines)
    return [(number, line) for number, line in enumerate(stripped, 1) if line]


def read_names(path: Path) -> list[str]:
    """Read names, one a line: the number of a name is that of its line, from 0.

    Raises:
        UnreadableError: as :func:`read_lines` does, and for a blank line before the last name, which would shift the
            names behind it.
    """
    lines = read_lines(path)
    if blank := next((place for place, (number, _) in enumerate(lines, 1) if number != place), None):
        raise UnreadableError(f"line {blank} is blank")
    return [line for _, line in lines]


def read_list(path: Path, *, whose: str, hint: str) -> list[tuple[int, str, int]]:
    """Read numbers of lines, paths and labels, in the order of the lines.

    Args:
        path: of the file.
        whose: data set, for messages.
        hint: what to do if it cannot be read, for messages.

    Raises:
        UserError: if it cannot be read, or naming a line that is not a path, blanks and a number, or that names a path
            again.
    """
    try:
        lines = read_lines(path)
    except UnreadableError as error:
        raise UserError(f"{whose}'s list {str(path)!r} cannot be read ({error}): {hint}.") from error
    entries = []
    known: set[str] = set()
    for number, line in lines:
        name, label = parse_line(line)
        if label is None:
            raise UserError(f"line {number} of {str(path)!r} is not 'path label': {line!r}.")
        if (plain := os.path.normpath(name)) in known:
            raise UserError(f"line {number} of {str(path)!r} names {name!r} again: leave one out.")
        known.add(plain)
        entries.append((number, name, label))
    return entries


def parse_line(line: str) -> tuple[str, int | None]:
    """Split a line at its last blanks into a path and a label; the label is ``None`` if it is no number."""
    name, _, label = line.replace("\t", " ").rpartition(" ")
    if not name.strip() or not (label.isascii() and label.isdecimal() and len(label) <= _MOST_DIGITS):
        return line, None
    return line[: len(line) - len(label)].rstrip(), int(label)
