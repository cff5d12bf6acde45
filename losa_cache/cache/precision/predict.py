"""``predict``: a precision with a dial, by which every layer is predicted from the one before it."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from losa_cache.cache.precision.base import Precision
from losa_cache.cache.precision.predict_encoding import MOST_BITS, PredictEncoding, load_chain
from losa_cache.cache.precision.predict_fit import fit_chain
from losa_cache.errors import UserError


class Predict(Precision):
    """Prediction with a dial: ``predict:1.5`` spends 1.5 bits a value, ``predict:20%`` allows an error of 20 % a layer.

    Args:
        bits: of a value, everything but the constants counted; or
        error: relative, of every layer but the last, 0 ... 1.
    """

    dtype = torch.bfloat16
    stored_dtype = torch.uint8
    storage = "uint8"
    fill = 0xFF
    dimension = "byte"
    folds = False
    images = 512
    chained = True

    def __init__(self, *, bits: float | None = None, error: float | None = None) -> None:
        self.bits, self.error = bits, error
        self.name = f"predict:{bits:g}" if error is None else f"predict:{100 * error:g}%"

    @classmethod
    def parse(cls, name: str) -> "Predict":
        """Read a name.

        Raises:
            UserError: for a dial that cannot be.
        """
        found = re.fullmatch(r"predict:(\d+\.?\d*)(%?)", name)
        if found is None:
            raise UserError(f"precision {name!r} lacks its dial: predict:1.5 (bits a value) or predict:20% (error).")
        value = float(found[1])
        if found[2]:
            if not 0 < value < 100:
                raise UserError(f"the error of {name!r} must lie between 0 and 100 %: 20 %, for one.")
            return cls(error=value / 100)
        if not 0 < value <= MOST_BITS:
            raise UserError(f"the bits of {name!r} must lie between 0 and {MOST_BITS:g}: 1.5, for one.")
        return cls(bits=value)

    def require(self, width: int) -> None:
        """Accept any."""

    def fit(self, blocks: Sequence[Tensor], *, tokens: int, prefix: int) -> PredictEncoding:
        """Fit a chain (:mod:`losa_cache.cache.precision.predict_fit`)."""
        return fit_chain(self, blocks, tokens=tokens, prefix=prefix, bits=self.bits, error=self.error)

    def load(self, constants: Mapping[str, Tensor], *, tokens: int, prefix: int) -> PredictEncoding:
        """Rebuild from the constants of :meth:`PredictEncoding.constants`."""
        return load_chain(self, constants, tokens=tokens, prefix=prefix)

    def stored_layers(self, layers: Sequence[int]) -> list[int]:
        """All layers of a sample are stored as one."""
        return [0]

    def needed(self, layers: Sequence[int]) -> list[int]:
        """A layer needs all before it."""
        return list(range(max(layers) + 1))
