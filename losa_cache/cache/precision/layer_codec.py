"""The codec of one layer: how it is predicted from the layer before it, and how the residual is quantised."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from losa_cache.cache.precision.bitplanes import BYTE, BitPlanes
from losa_cache.cache.precision.token_codec import Tables
from losa_cache.machine.device import has_bfloat16


@dataclass(frozen=True)
class LayerCodec:
    """How one layer is predicted, and how its residual is stored; m axes of d channels.

    Attributes:
        mean: float32 ``(d,)``, and
        spread: float32 ``(d,)``: a value minus its mean, divided by its spread, is a standardised value.
        predictor: float16 ``(d, d)``, from standardised values of the layer before (rows) to those of this layer;
            ``None`` for the first layer.
        axes: float16 ``(m, d)``, orthonormal rows.
        bits: bits of each axis, in descending order.
        step_sizes: float32 ``(m,)``, step of the quantiser of each axis, for a token of scale 1.
        deviations: float32 ``(m,)``, usual magnitude along each axis; scales of tokens are relative to it.
    """

    mean: Tensor
    spread: Tensor
    predictor: Tensor | None
    axes: Tensor
    bits: tuple[int, ...]
    step_sizes: Tensor
    deviations: Tensor

    @property
    def token_bytes(self) -> int:
        """Bytes of a token: its scale and its codes."""
        return 1 + sum(self.bits) // BYTE

    @cached_property
    def tables(self) -> Tables:
        """Give the same constants in the form that products need."""
        device = self.mean.device
        product = torch.bfloat16 if has_bfloat16(device) else torch.float32
        axes, sizes = self.axes.float(), self.step_sizes[:, None]
        share = (sizes / self.deviations[:, None]).sqrt() / max(1, len(self.bits))
        return Tables(
            mean=self.mean,
            spread=self.spread,
            offset=-self.mean / self.spread,
            per_spread=1 / self.spread,
            forecast=None if self.predictor is None else self.predictor.to(product),
            turn=(axes / sizes).to(product),
            rebuild=(sizes * axes).to(product),
            share=share.to(product),
            half=(2.0 ** torch.tensor(self.bits, dtype=torch.float32, device=device)[:, None] - 1) / 2,
            bit_planes=BitPlanes(*(table.to(device) for table in BitPlanes.of(self.bits))),
        )

    def to(self, device: torch.device) -> "LayerCodec":
        """Move the constants."""
        return LayerCodec(
            mean=self.mean.to(device),
            spread=self.spread.to(device),
            predictor=None if self.predictor is None else self.predictor.to(device),
            axes=self.axes.to(device),
            bits=self.bits,
            step_sizes=self.step_sizes.to(device),
            deviations=self.deviations.to(device),
        )
