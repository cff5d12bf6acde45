"""Floating point: values are rounded to nearest, and nothing is fitted."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from losa_cache.cache.precision.base import PerLayerEncoding, Precision, in_parts
from losa_cache.machine.fastest import why_not_triton


class Float(Precision, PerLayerEncoding):
    """float32, float16 or bfloat16. It is its own encoding, because it has no constants.

    Args:
        name: name of the dtype.
        dtype: dtype of the values, stored and decoded.
        storage: the Zarr data type; bfloat16 has none, so its bits are stored as uint16.
        fill: NaN in ``storage``.
    """

    dimension = "channel"
    folds = False
    images = 0

    def __init__(self, name: str, dtype: torch.dtype, storage: str, fill: Any) -> None:
        self.name, self.dtype, self.stored_dtype, self.storage, self.fill = name, dtype, dtype, storage, fill
        self.precision = self

    def require(self, width: int) -> None:
        """Accept any."""

    def columns(self, width: int) -> int:
        """Give the channels themselves."""
        return width

    def row(self, points: int, tokens: int, width: int) -> tuple[int, int, int]:
        """Give the values themselves."""
        return points, tokens, width

    def fit(self, blocks: Sequence[Tensor], *, tokens: int, prefix: int) -> "Float":
        """Return self."""
        return self

    def load(self, constants: Mapping[str, Tensor], *, tokens: int, prefix: int) -> "Float":
        """Return self."""
        return self

    def to(self, device: torch.device) -> "Float":
        """Return self."""
        return self

    def select(self, positions: Sequence[int]) -> "Float":
        """Return self."""
        return self

    def encode_layer(self, layer: int, block: Tensor, out: Tensor) -> Tensor:
        """Round to nearest; what overflows becomes infinite until :meth:`saturate`."""
        if len(block) and why_not_triton(block.device) is None:
            from losa_cache.cache.precision.kernels import floats

            if floats.readable(block, out):
                return floats.encode(block, out)
        extremes = []
        for values, target in in_parts(block, out):
            target.copy_(values)
            extremes.append(values.abs().amax())
        return torch.stack(extremes).amax()

    def decode_layer(self, layer: int, stored: Tensor) -> Tensor:
        """Return the stored values."""
        return stored

    def saturate(self, stored: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
        """Saturate and count (as the contract says)."""
        largest = torch.finfo(self.dtype).max
        overflowed, non_finite = torch.zeros(2, len(stored), dtype=torch.int64)
        for layer in (~(extremes < largest)).nonzero().flatten().tolist():
            if extremes[layer].isfinite():
                overflowed += stored[:, layer].isinf().sum(dim=(1, 2))
                stored[:, layer].clamp_(-largest, largest)
            else:
                non_finite += (~stored[:, layer].isfinite()).sum(dim=(1, 2))
        return overflowed, non_finite

    def constants(self) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Bound the error by half a unit in the last place."""
        return {"error": torch.finfo(self.dtype).eps / 2}

    def round(self, layer: int, block: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Copy values rounded to nearest, finite ones saturated."""
        if self.dtype == torch.float16:
            largest = torch.finfo(self.dtype).max
            block = torch.where(block.isfinite(), block.clamp(-largest, largest), block)
        return block.to(self.dtype, copy=True), None


FLOATS = (
    Float("float32", torch.float32, "float32", float("nan")),
    Float("float16", torch.float16, "float16", float("nan")),
    Float("bfloat16", torch.bfloat16, "uint16", 0x7FC0),
)
