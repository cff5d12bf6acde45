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
from losa_cache.targets.from_csv import LARGEST, Table
from losa_cache.targets.from_folder import Pictures
from losa_cache.targets.pictures import read_mask
from losa_cache.targets.target_set import CLASS, MASK, NUMBERS


def values_of(
    path: Path, column: str, ids: Sequence[str], values: Sequence[Any], *, names: Sequence[str] | None = None
) -> Table:
    """Make a target set of a column.

    Args:
        path: of the data, for messages.
        column: its name.
        ids: of the samples.
        values: one for each sample: numbers, lists of numbers of one length, or names of classes.
        names: of the classes that numbers mean; ``None``: numbers are what is to be predicted.

    Raises:
        UserError: for values that are none of these, or numbers that are not finite.
    """
    if names is not None or all(isinstance(value, str) for value in values):
        known = sorted({*values}) if names is None else list(names)
        places = {name: place for place, name in enumerate(known)}
        numbers = [places[value] if isinstance(value, str) else value for value in values]
        return Table(path, CLASS, ids, known, np.array(numbers, dtype=np.int64))
    rows = [value if isinstance(value, list) else [value] for value in values]
    for name, row in zip(ids, rows, strict=True):
        if len(row) != len(rows[0]) or not all(_finite(number) for number in row):
            raise UserError(
                f"column {column!r} of {str(path)!r} holds {str(row)[:80]} for {name!r}: a target is a finite number, "
                "a list of as many of them as in the other samples, or a text."
            )
    count = len(rows[0]) if rows else 1
    columns = [column] if count == 1 else [f"{column}{number}" for number in range(count)]
    return Table(path, NUMBERS, ids, columns, np.array(rows, dtype=np.float32))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST


def masks_of(path: Path, ids: Sequence[str], encoded: Callable[[int], bytes]) -> "EncodedMasks":
    """Make a target set of PNG masks.

    Args:
        path: of the data, for messages.
        ids: of the samples.
        encoded: gives the bytes of a sample's mask.
    """
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
