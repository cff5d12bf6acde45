"""Files that choose samples: a weight for each, or the ids of some."""

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, open_file, read_file
from losa_cache.table_file import parse_csv
from losa_cache.targets.class_weights import BALANCED as CLASSES_BALANCED
from losa_cache.train.config import BALANCED, SHUFFLE, WEIGHT, TrainConfig

HEADER = ["id", "weight"]
CLASS_HEADER = ["name", "weight"]
GROUP_HEADER = ["id", "group"]
T = TypeVar("T")
MOST_BYTES = 2**30  # ids of ten million samples


def require_sample_files(config: TrainConfig) -> None:
    """Refuse options that name files which cannot be opened, before anything else is.

    Raises:
        UserError: naming the option.
    """
    words = (SHUFFLE, BALANCED, WEIGHT)
    _require_weights(config.sampling, "sampling", ", ".join(words), words)
    if config.val_ids is not None:
        require_opens(config.val_ids, "val-ids")
    _require_weights(config.class_weights, "class-weights", CLASSES_BALANCED, (None, CLASSES_BALANCED))
    if config.group_by is not None and config.group_by.endswith(".csv"):
        require_opens(config.group_by, "group-by")


def names_file(value: str) -> bool:
    """Tell whether a value is the path of something that may be a file; a folder may be called as target sets are."""
    return os.path.lexists(value) and not os.path.isdir(value)


def _require_weights(value: str | None, option: str, words: str, known: Sequence[str | None]) -> None:
    """Refuse a value that is neither a word nor a file that can be opened.

    Args:
        value: of the option.
        option: its name, for messages.
        words: that it may be, for messages.
        known: values that name no file.

    Raises:
        UserError: naming the option.
    """
    if value in known:
        return
    assert value is not None
    if not os.path.exists(value):
        raise UserError(f"{option} is {value!r}, and there is no such file: choose {words} or a CSV file of weights.")
    require_opens(value, option)


def require_opens(path: str, option: str) -> None:
    """Refuse a file that cannot be opened.

    Raises:
        UserError: naming the option.
    """
    try:
        open_file(Path(path)).close()
    except UnreadableError as error:
        raise _unreadable(path, option, error) from error


def _unreadable(path: str, option: str, error: UnreadableError) -> UserError:
    return UserError(
        f"{option} is {str(path)!r}, a file that cannot be read ({error}): name a file, no directory or pipe."
    )


def read_sample_file(path: str, option: str) -> bytes:
    """Read the file that an option names.

    Raises:
        UserError: if it cannot be read, naming the option.
    """
    try:
        return read_file(Path(path), at_most=MOST_BYTES)
    except UnreadableError as error:
        raise _unreadable(path, option, error) from error


def parse_groups(content: bytes, path: str) -> dict[str, str]:
    """Parse groups by id from CSV: the line ``id,group``, then one line for each sample, with CSV's usual quotes.

    Args:
        content: UTF-8.
        path: of the file, for messages.

    Raises:
        UserError: for another first line, a line that is not an id and the name of a group, or an id that comes twice.
    """
    wanted = "an id and the name of its group"
    return _by_name(content, path, GROUP_HEADER, ("groups", "groups"), wanted, lambda text: text or None)


def parse_weights(content: bytes, path: str, header: Sequence[str] = HEADER) -> dict[str, float]:
    """Parse weights from CSV: the line ``id,weight``, then one line for each sample, with CSV's usual quotes.

    Args:
        content: UTF-8.
        path: of the file, for messages.
        header: the first line; ``CLASS_HEADER`` for weights of classes.

    Raises:
        UserError: for another first line, a line that is not a name and a finite weight of at least 0, or an id that
            comes twice.
    """
    first = "an id" if header is HEADER else "a name"
    return _by_name(
        content, path, header, ("weights", "weighs"), f"{first} and a weight, finite and at least 0", _weight
    )


def _by_name(
    content: bytes,
    path: str,
    header: Sequence[str],
    what: tuple[str, str],
    wanted: str,
    read: Callable[[str], T | None],
) -> dict[str, T]:
    """Parse CSV of two columns, a name and a value.

    Args:
        content: UTF-8.
        path: of the file, for messages.
        header: the first line.
        what: the file gives, and what it does with a name, for messages: ``weights``, ``weighs``.
        wanted: what a line must be, for messages.
        read: gives the value of a cell; ``None``: it is none.

    Raises:
        UserError: for another first line, a line without a value, or a name that comes twice.
    """
    noun, verb = what
    names, lines, rows = parse_csv(_text(content), path)
    if names != [*header]:
        raise UserError(f"{noun} {str(path)!r} must begin with the line {','.join(header)}: put it first.")
    found: dict[str, T] = {}
    for line, (name, cell) in zip(lines, rows, strict=True):
        value = read(cell)
        if value is None:
            raise UserError(f"line {line} of {str(path)!r} is {f'{name},{cell}'[:80]!r}: it must be {wanted}.")
        if name in found:
            raise UserError(f"line {line} of {str(path)!r} {verb} {name!r} again: leave one out.")
        found[name] = value
    return found


def written_weights(ids: Sequence[str], weights: Sequence[float]) -> bytes:
    """Write weights as :func:`parse_weights` reads them."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([HEADER, *zip(ids, weights, strict=True)])
    return text.getvalue().encode("utf-8", "surrogateescape")


def parse_ids(content: bytes, path: str) -> list[str]:
    """Parse ids, one a line; empty lines are ignored.

    Args:
        content: UTF-8.
        path: of the file, for messages.

    Raises:
        UserError: if there is none.
    """
    lines = [line.removesuffix("\r") for line in _text(content).split("\n")]
    if not any(lines):
        raise UserError(f"{str(path)!r} holds no ids: give one a line.")
    return [line for line in lines if line]


def _text(content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark; ids are file names, which need not be valid UTF-8."""
    return content.decode("utf-8-sig", "surrogateescape")


def _weight(text: str) -> float | None:
    """Read a weight; ``None`` if it is no finite number of at least 0."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 <= weight < math.inf else None
