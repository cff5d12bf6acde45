"""Names of precisions. This module imports no library, so that a command refuses an unknown one at once."""

import re

from losa_cache.errors import UserError
from losa_cache.points import POOLED

NAMES = ("float32", "float16", "bfloat16", "int8", "int4")
"""Precisions without a number of their own: ``losa_cache.cache.precision.PRECISIONS`` says what they are."""
OF_POOLED = ("float32", "float16", "bfloat16", "int8")
"""Precisions of pooled rows. The error of a coarser one is not averaged over tokens, and there is little to save."""
PREDICT = "predict"
MOST_BITS = 8.0


def require_precision(name: str, *, tokens: str | None = None) -> None:
    """Refuse a precision that does not exist, or that a cache of these tokens cannot have.

    Args:
        name: of the precision.
        tokens: which of ``losa_cache.points.TOKENS`` the cache holds; ``None`` allows every precision.

    Raises:
        UserError: naming the known ones.
    """
    if name.partition(":")[0] == PREDICT:
        parse_predict(name)
    elif name not in NAMES:
        raise UserError(f"unknown precision {name!r}: choose one of {', '.join(NAMES)}, predict:BITS, predict:ERROR%.")
    if tokens == POOLED and name not in OF_POOLED:
        raise UserError(
            f"precision is {name!r}, but pooled rows are few and small: choose one of {', '.join(OF_POOLED)}."
        )


def parse_predict(name: str) -> tuple[float | None, float | None]:
    """Read ``predict:1.5`` or ``predict:20%``.

    Returns:
        bits a value, and the relative error of a layer as a fraction; one of the two is ``None``.

    Raises:
        UserError: for a name that gives neither, or a number out of range.
    """
    match = re.fullmatch(rf"{PREDICT}:(\d+\.?\d*)(%?)", name)
    if match is None:
        raise UserError(
            f"precision {name!r} must say how many bits a value has, as in predict:1.5, or how large the relative "
            "error of a layer may be, as in predict:20%."
        )
    value = float(match[1])
    if match[2]:
        if not 0 < value < 100:
            raise UserError(f"the error of {name!r} must lie between 0 and 100 %, as in predict:20%.")
        return None, value / 100
    if not 0 < value <= MOST_BITS:
        raise UserError(f"the bits of {name!r} must lie between 0 and {MOST_BITS:g}, as in predict:1.5.")
    return value, None
