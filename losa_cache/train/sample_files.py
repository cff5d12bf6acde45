"""Files that choose samples: a weight for each, or the ids of some."""

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, open_file, read_file
from losa_cache.targets.class_weights import BALANCED as CLASSES_BALANCED
from losa_cache.train.config import BALANCED, SHUFFLE, TrainConfig

HEADER = ["id", "weight"]
CLASS_HEADER = ["name", "weight"]
GROUP_HEADER = ["id", "group"]
MOST_BYTES = 2**30  # ids of ten million samples


def require_sample_files(config: TrainConfig) -> None:
    """Refuse options that name files which cannot be opened, before anything else is.

    Raises:
        UserError: naming the option.
    """
    if config.sampling not in (SHUFFLE, BALANCED):
        if not os.path.exists(config.sampling):
            raise UserError(
                f"sampling is {str(config.sampling)!r}, and there is no such file: choose {SHUFFLE}, {BALANCED} or a "
                "CSV file of weights."
            )
        require_opens(config.sampling, "sampling")
    if config.val_ids is not None:
        require_opens(config.val_ids, "val-ids")
    if config.class_weights not in (None, CLASSES_BALANCED):
        if not os.path.exists(config.class_weights):
            raise UserError(
                f"class-weights is {config.class_weights!r}, and there is no such file: choose {CLASSES_BALANCED} or a "
                "CSV file of weights."
            )
        require_opens(config.class_weights, "class-weights")
    if config.group_by is not None and config.group_by.endswith(".csv"):
        require_opens(config.group_by, "group-by")


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
    lines = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    groups: dict[str, str] = {}
    try:
        if next(lines, None) != GROUP_HEADER:
            raise UserError(f"groups {str(path)!r} must begin with the line {','.join(GROUP_HEADER)}: put it first.")
        for fields in filter(None, lines):
            if len(fields) != len(GROUP_HEADER) or not fields[1]:
                line = ",".join(fields)[:80]
                raise UserError(
                    f"line {lines.line_num} of {str(path)!r} is {line!r}: it must be an id and the name of its group."
                )
            if fields[0] in groups:
                raise UserError(f"line {lines.line_num} of {str(path)!r} groups {fields[0]!r} again: leave one out.")
            groups[fields[0]] = fields[1]
    except csv.Error as error:
        raise UserError(f"line {lines.line_num} of {str(path)!r} is not CSV ({error}): mend it.") from error
    return groups


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
    lines = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    weights: dict[str, float] = {}
    try:
        if next(lines, None) != [*header]:
            raise UserError(f"weights {str(path)!r} must begin with the line {','.join(header)}: put it first.")
        for fields in lines:
            if not fields:
                continue
            weight = _number(fields[1]) if len(fields) == len(header) else math.nan
            if not 0 <= weight < math.inf:
                line, first = ",".join(fields)[:80], "an id" if header is HEADER else "a name"
                raise UserError(
                    f"line {lines.line_num} of {str(path)!r} is {line!r}: it must be {first} and a weight, finite "
                    "and at least 0."
                )
            if fields[0] in weights:
                raise UserError(f"line {lines.line_num} of {str(path)!r} weighs {fields[0]!r} again: leave one out.")
            weights[fields[0]] = weight
    except csv.Error as error:
        raise UserError(f"line {lines.line_num} of {str(path)!r} is not CSV ({error}): mend it.") from error
    return weights


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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
