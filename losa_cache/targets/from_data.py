"""Target sets that come with a data set: values that are in memory, and masks of which the bytes are given."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.from_folder import Pictures
from losa_cache.targets.from_table import LARGEST, Table, read_cells
from losa_cache.targets.pictures import read_mask
from losa_cache.targets.target_set import CLASS, MASK, MULTILABEL, NUMBERS

_HELD = {CLASS: "numbers of classes", MULTILABEL: "lists of classes", NUMBERS: "lists of numbers", MASK: "images"}


def values_of(
    path: Path,
    column: str,
    ids: Sequence[str],
    values: Sequence[Any],
    *,
    kind: str | None,
    names: Sequence[str] | None = None,
) -> Table:
    """Make a target set of a column.

    Args:
        path: of the data, for messages.
        column: its name.
        ids: of the samples.
        values: one for each sample: a number or a text, a list of as many numbers as in the other samples, or with
            names a number or a list of numbers of classes.
        kind: of the target set; ``None``: as the values say. Whole numbers do not say whether they are classes.
        names: of the classes that the values number.

    Raises:
        UserError: for values that are none of these, or that the kind does not allow.
    """
    lists = any(isinstance(value, list) for value in values)
    if names is not None and kind != NUMBERS:
        _require_kind(path, column, kind, MULTILABEL if lists else CLASS)
        return _labels(path, column, ids, values, names) if lists else _classes(path, column, ids, values, names)
    if lists:
        _require_kind(path, column, kind, NUMBERS)
        return _vectors(path, column, ids, values)
    _require_cells(path, column, ids, values)
    if kind is None and any(isinstance(value, float) for value in values):
        kind = NUMBERS
    return read_cells(path, column, [_cell(value) for value in values], ids, kind=kind)


def _require_kind(path: Path, column: str, asked: str | None, held: str) -> None:
    if asked not in (None, held):
        raise UserError(f"column {column!r} of {str(path)!r} cannot be read as {asked}: it holds {_HELD[held]}.")


def _require_cells(path: Path, column: str, ids: Sequence[str], values: Sequence[Any]) -> None:
    for name, value in zip(ids, values, strict=True):
        if not isinstance(value, str | int | float | None):
            raise UserError(
                f"column {column!r} of {str(path)!r} holds a value of type {type(value).__name__} for {name!r}: a "
                "target is a number, a text, or a list of numbers."
            )


def _cell(value: Any) -> str:
    """Write a value as a table does: nothing where there is none."""
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if missing else str(value).strip()


def _classes(path: Path, column: str, ids: Sequence[str], values: Sequence[Any], names: Sequence[str]) -> Table:
    for name, value in zip(ids, values, strict=True):
        _require_class(path, column, name, value, names)
    return Table(path, CLASS, ids, list(names), np.array(values, dtype=np.int64))


def _labels(path: Path, column: str, ids: Sequence[str], values: Sequence[Any], names: Sequence[str]) -> Table:
    marks = np.zeros((len(values), len(names)), dtype=np.int8)
    for place, numbers in enumerate(values):
        for number in numbers or ():
            _require_class(path, column, ids[place], number, names)
            marks[place, number] = 1
    return Table(path, MULTILABEL, ids, list(names), marks)


def _require_class(path: Path, column: str, name: str, value: Any, names: Sequence[str]) -> None:
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(
            f"column {column!r} of {str(path)!r} holds {str(value)[:80]!r} for {name!r}: it must be the number of one "
            f"of {len(names)} classes."
        )


def _vectors(path: Path, column: str, ids: Sequence[str], values: Sequence[Any]) -> Table:
    length = len(values[0]) if isinstance(values[0], list) else -1
    for name, row in zip(ids, values, strict=True):
        if not (isinstance(row, list) and len(row) == length and row and all(map(_finite, row))):
            raise UserError(
                f"column {column!r} of {str(path)!r} holds {str(row)[:80]!r} for {name!r}: a target is a number, a "
                "text, or a list of as many finite numbers as in the other samples."
            )
    return Table(path, NUMBERS, ids, [f"{column}{place}" for place in range(length)], np.array(values, np.float32))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST


def masks_of(
    path: Path, column: str, ids: Sequence[str], encoded: Callable[[int], bytes], *, kind: str | None
) -> "EncodedMasks":
    """Make a target set of PNG masks.

    Args:
        path: of the data, for messages.
        column: its name.
        ids: of the samples.
        encoded: gives the bytes of a sample's mask.
        kind: that the user names.

    Raises:
        UserError: for a kind: none that a user may name is of masks.
    """
    _require_kind(path, column, kind, MASK)
    return EncodedMasks(path, MASK, ids, None, None, encoded)


@dataclass(frozen=True)
class EncodedMasks(Pictures):
    """Masks of which the bytes are given.

    Attributes:
        encoded: gives the bytes of the mask of a place.
    """

    encoded: Callable[[int], bytes]

    def stored(self, place: int) -> NDArray[Any]:
        """Decode a mask."""
        return read_mask(io.BytesIO(self.encoded(place)))
