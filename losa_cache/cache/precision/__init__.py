"""Precisions: how a block output is stored, encoded on the device and decoded there."""

from losa_cache.cache.precision.base import EncodedBatch, Encoding, Precision
from losa_cache.cache.precision.floats import FLOATS
from losa_cache.cache.precision.integers import INTEGERS
from losa_cache.errors import UserError

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (*FLOATS, *INTEGERS)}


def get_precision(name: str) -> Precision:
    """Look a precision up.

    Raises:
        UserError: for an unknown name.
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: choose one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


__all__ = ["PRECISIONS", "EncodedBatch", "Encoding", "Precision", "get_precision"]
