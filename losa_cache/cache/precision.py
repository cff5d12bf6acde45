"""Precisions: how a block output is stored, encoded on the device and decoded there."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from losa_cache.errors import UserError


@dataclass(frozen=True)
class Precision:
    """One way of storing values.

    Attributes:
        name: as on the command line and in the manifest.
        dtype: the torch dtype of the values.
        storage: the Zarr data type; bfloat16 has none, so its bits are stored as uint16.
        fill: fill value of the array, which reads as NaN: a missing chunk must never look like zeros.
    """

    name: str
    dtype: torch.dtype
    storage: str
    fill: Any

    @property
    def itemsize(self) -> int:
        """Bytes a value."""
        return self.dtype.itemsize

    def encoder(self, shape: tuple[int, int, int, int], device: torch.device) -> "Encoder":
        """Begin a batch of ``(batch, layers, tokens, width)``."""
        return Encoder(
            values=torch.empty(shape, dtype=self.dtype, device=device),
            extremes=torch.empty(shape[1], dtype=torch.float32, device=device),
        )

    def rounded(self, block: Tensor) -> Tensor:
        """Copy values as a cache would give them back: rounded to nearest, finite ones saturated."""
        if self.dtype == torch.float16:
            largest = torch.finfo(self.dtype).max
            block = torch.where(block.isfinite(), block.clamp(-largest, largest), block)
        return block.to(self.dtype, copy=True)

    def settle(self, values: Tensor, extremes: Tensor) -> tuple[int, int]:
        """Saturate overflowed values in place, and count what is not as the backbone gave it.

        Costs nothing for layers whose ``extremes`` lie well within the range.

        Args:
            values, extremes: of the encoder, on the host.

        Returns:
            how many finite values overflowed (now the largest finite value, with their sign), and how many the
            backbone itself gave as infinite or NaN (stored as they are).
        """
        largest = torch.finfo(self.dtype).max
        overflowed = non_finite = 0
        for layer in (~(extremes < largest)).nonzero().flatten().tolist():
            if extremes[layer].isfinite():
                overflowed += int(values[:, layer].isinf().sum())
                values[:, layer].clamp_(-largest, largest)
            else:
                non_finite += int((~values[:, layer].isfinite()).sum())
        return overflowed, non_finite


@dataclass(frozen=True)
class Encoder:
    """Take a batch's block outputs one by one, on their device, while they are still in its cache.

    Attributes:
        values: ``(batch, layers, tokens, width)``, rounded to nearest.
        extremes: ``(layers,)`` largest magnitude before rounding (NaN if a value is), from which
            :meth:`Precision.settle` knows whether anything overflowed.
    """

    values: Tensor
    extremes: Tensor

    def put(self, layer: int, block: Tensor) -> None:
        """Encode the block output ``(batch, tokens, width)`` of one layer."""
        self.values[:, layer].copy_(block)
        self.extremes[layer] = torch.stack(block.aminmax()).abs().amax()


PRECISIONS = {
    "float32": Precision("float32", torch.float32, "float32", float("nan")),
    "float16": Precision("float16", torch.float16, "float16", float("nan")),
    "bfloat16": Precision("bfloat16", torch.bfloat16, "uint16", 0x7FC0),
}


def get_precision(name: str) -> Precision:
    """Look a precision up.

    Raises:
        UserError: for an unknown name.
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: choose one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
