"""Text files that list images: lines ``path label``."""

from pathlib import Path

from losa_cache.errors import UserError


def read_list(path: Path, *, whose: str, hint: str) -> list[tuple[str, int]]:
    """Read paths and labels, in the order of the lines: entry i is line i + 1.

    Args:
        path: of the file, in UTF-8.
        whose: data set, for messages.
        hint: what to do where it cannot be read, for messages.

    Raises:
        UserError: if it cannot be read, or naming a line that is not a path, a space and a number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{whose}'s list {str(path)!r} cannot be read ({reason}): {hint}.") from error
    entries = []
    for number, line in enumerate(lines, 1):
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not label.isdecimal():
            raise UserError(f"line {number} of {str(path)!r} is not 'path label': {line!r}.")
        entries.append((name, int(label)))
    return entries
