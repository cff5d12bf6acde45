"""Precisions: how a block output is stored, encoded on the device and decoded there."""

from collections.abc import Sequence
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

    def encode(self, blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode k block outputs ``(batch, tokens, width)`` on their device.

        Returns:
            values ``(batch, k, tokens, width)`` in ``dtype``, and per layer the largest magnitude before rounding
            ``(k,)`` (NaN if a value is NaN), from which :meth:`settle` knows whether anything overflowed.
        """
        values = torch.stack([block.to(self.dtype) for block in blocks], dim=1)
        extremes = torch.stack([torch.stack(block.aminmax()).abs().amax() for block in blocks])
        return values, extremes.float()

    def settle(self, values: Tensor, extremes: Tensor) -> tuple[int, int]:
        """Saturate overflowed values in place, and count what is not as the backbone gave it.

        Costs nothing for layers whose ``extremes`` lie well within the range.

        Args:
            values, extremes: what :meth:`encode` returned, on the host.

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
