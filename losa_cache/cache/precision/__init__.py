"""Precisions: how a block output is stored, encoded on the device and decoded there."""

from losa_cache.cache.precision.base import EncodedBatch, Encoding, Precision
from losa_cache.cache.precision.floats import FLOATS
from losa_cache.cache.precision.integers import INTEGERS
from losa_cache.cache.precision.predict import Predict
from losa_cache.errors import UserError

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (*FLOATS, *INTEGERS)}


def get_precision(name: str) -> Precision:
    """Look a precision up.

    Raises:
        UserError: for an unknown name, or a dial of ``predict`` that cannot be.
    """
    if name.partition(":")[0] == "predict":
        return Predict.parse(name)
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: choose one of {', '.join(PRECISIONS)}, predict:BITS, predict:E%.")
    return PRECISIONS[name]


__all__ = ["PRECISIONS", "EncodedBatch", "Encoding", "Precision", "get_precision"]
