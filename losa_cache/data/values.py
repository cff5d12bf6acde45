"""Values of more than 8 bits, of any data type, to pictures of 8 bits by a stated range."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from losa_cache.data.pixel_rules import WHOLE, PixelRules, ValueRange

LEAST_SHARE = 1 / 16
"""Share of its range that a picture must exceed. One that does not, such as 12 bits in a file of 16, keeps at most 16
of 256 grey levels."""


class MissingChannelError(ValueError):
    """Says how many channels a picture has, and which one it lacks."""


class UnusedRangeError(ValueError):
    """Says that a picture hardly uses its range, or lies beyond it.

    Args:
        fact: what its values are.
        remedy: what to do at extraction.

    Attributes:
        fact: what its values are.
    """

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact}: {remedy}")
        self.fact = fact


Trust = Literal["window", "declared", "type"]
"""Where black and white come from: a file names them for display, declares how many bits it has, or has a data type."""


@dataclass(frozen=True)
class Values:
    """The values of a picture, as its file has them.

    Attributes:
        array: ``(height, width, channels)``, integers or floats.
        black, white: which values these are, as the file says.
        trust: where they come from. A ``window`` is never questioned, what is ``declared`` by ``PixelRules.checked``,
            the range of a ``type`` always.
        shown: numbers of the channels that make the picture, from 1, one or three; none: the file does not say.
        inverted: whether black and white change places in the end.
    """

    array: NDArray[Any]
    black: float
    white: float
    trust: Trust
    shown: tuple[int, ...] = (1,)
    inverted: bool = False


def limits_of(dtype: np.dtype[Any], bits: int | None = None) -> tuple[float, float]:
    """Give the range of a data type, or of so many bits of it; of floating-point values it is 0 to 1."""
    if dtype.kind == "f":
        return 0.0, 1.0
    bits = bits or 8 * dtype.itemsize
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.kind == "i" else (0.0, 2.0**bits - 1)


def picture_of(values: Values, rules: PixelRules) -> Image.Image:
    """Scale values to 8 bits, of one channel or three.

    Values beyond the range become black or white, NaN black, and so does a picture of one value where the range is its
    own. The values of a picture have no influence on its range otherwise: all pictures of a data set are scaled alike.

    Raises:
        ValueError: for channels that are not there, values of which none is a number, or a range that the picture
            hardly uses.
    """
    array = taken(values.array, rules.channels or values.shown)
    if array.dtype.kind == "f" and not np.isfinite(array).any():
        raise ValueError("none of its values is a finite number")
    low, high = _limits(array, values, rules)
    scaled = _scaled(array, low, high)
    if values.inverted:
        scaled = 255 - scaled
    return Image.fromarray(scaled[..., 0] if scaled.shape[-1] == 1 else scaled)


def taken(array: NDArray[Any], channels: Sequence[int]) -> NDArray[Any]:
    """Take channels ``(height, width, channels)`` by their numbers from 1; a single one counts as three alike.

    Raises:
        MissingChannelError: if there are fewer.
        ValueError: if none are named.
    """
    count = array.shape[-1]
    if not channels:
        raise ValueError(f"it has {count} channels and does not say which are its colours: name them with --channels")
    if count == 1 and max(channels) <= 3:
        return array
    if max(channels) > count:
        raise MissingChannelError(
            f"it has {count} channel{'s'[: count > 1]}, and no channel {max(channels)} (--channels)"
        )
    return array[..., [number - 1 for number in channels]]


def require_page(page: int, count: int, kind: str = "page") -> None:
    """Refuse a page, frame or slice that a file does not have.

    Raises:
        ValueError: saying how many there are.
    """
    if page > count:
        raise ValueError(f"it has {count} {kind}{'s'[: count != 1]}, and no {kind} {page} (--page)")


def require_used(array: NDArray[Any], black: float, white: float, trust: Trust) -> None:
    """Refuse a picture of several values that would have next to no contrast.

    Raises:
        UnusedRangeError: naming ``--range``.
    """
    low, high = _range_of(array, WHOLE)
    if trust == "type" and array.dtype.kind == "f" and not black <= low <= high <= white:
        raise UnusedRangeError(
            f"it holds floating-point values from {low:g} to {high:g}, not from 0 to 1",
            "name the values that are black and white with --range",
        )
    if 0 < high - low <= LEAST_SHARE * (white - black):
        example = f"0..{2 ** int(high).bit_length() - 1}" if low >= 0 else f"{low:g}..{high:g}"
        way_out = ", or take it as it is with --range dtype" if trust == "declared" else ""
        raise UnusedRangeError(
            f"its values lie between {low:g} and {high:g}, in a sixteenth of what its file can hold ({black:g} to "
            f"{white:g})",
            f"name the values that are black and white with --range, such as {example}{way_out}",
        )


def _limits(array: NDArray[Any], values: Values, rules: PixelRules) -> tuple[float, float]:
    if rules.range is None:
        if values.trust == "type" or (values.trust == "declared" and rules.checked):
            require_used(array, values.black, values.white, values.trust)
        return values.black, values.white
    return _range_of(array, rules.range)


def _range_of(array: NDArray[Any], wanted: ValueRange | tuple[float, float]) -> tuple[float, float]:
    """Give the two values of a range, of which percentiles depend on the finite values of the picture."""
    if isinstance(wanted, ValueRange) and not wanted.percent:
        return wanted.low, wanted.high
    pair = (wanted.low, wanted.high) if isinstance(wanted, ValueRange) else wanted
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if not finite.size:
        return 0.0, 0.0
    low, high = (finite.min(), finite.max()) if pair == WHOLE else np.percentile(finite, pair)
    return float(low), float(high)


def _scaled(array: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Scale to 0 ... 255, rounded to the nearest."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return _table(low, high, 8 * array.dtype.itemsize)[array]
    return _linear(array, low, high)


@lru_cache(8)
def _table(low: float, high: float, bits: int) -> NDArray[np.uint8]:
    return _linear(np.arange(2**bits), low, high)


def _linear(array: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    if not low < high:
        return np.zeros(array.shape, dtype=np.uint8)
    values = np.clip(array.astype(np.float64), low, high)
    values -= low
    values *= 255 / (high - low)
    values += 0.5
    if array.dtype.kind == "f":
        np.nan_to_num(values, copy=False, nan=0)
    return values.astype(np.uint8)  # cuts what is behind the point
