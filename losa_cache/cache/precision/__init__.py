"""Precisions: how a block output is stored, encoded on the device and decoded there."""

from losa_cache.cache.precision.base import EncodedBatch, Encoding, Precision
from losa_cache.cache.precision.floats import FLOATS
from losa_cache.cache.precision.integers import INTEGERS
from losa_cache.cache.precision.predict import Predict
from losa_cache.cache.precision_names import NAMES, require_precision

PRECISIONS: dict[str, Precision] = dict(zip(NAMES, (*FLOATS, *INTEGERS), strict=True))


def get_precision(name: str) -> Precision:
    """Look a precision up.

    Raises:
        UserError: for an unknown name, or a number of ``predict`` that is out of range.
    """
    require_precision(name)
    return PRECISIONS[name] if name in PRECISIONS else Predict.parse(name)


__all__ = ["PRECISIONS", "EncodedBatch", "Encoding", "Precision", "get_precision"]
