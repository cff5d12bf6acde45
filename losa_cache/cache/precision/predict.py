"""``predict``: every layer is predicted from the one before it; the name says how many bits, or how large an error."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from losa_cache.cache.precision.base import Precision
from losa_cache.cache.precision.predict_encoding import PredictEncoding, load_chain
from losa_cache.cache.precision.predict_fit import fit_chain
from losa_cache.cache.precision_names import parse_predict


class Predict(Precision):
    """``predict:1.5`` spends 1.5 bits a value, ``predict:20%`` allows a relative error of 20 % in each layer.

    Args:
        bits: how many a value has; everything but the constants is counted.
        error: relative error of every layer but the last, 0 ... 1, in place of ``bits``.
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
            UserError: as of :func:`~losa_cache.cache.precision_names.parse_predict`.
        """
        bits, error = parse_predict(name)
        return cls(bits=bits, error=error)

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
