"""Integers of 8 and 4 bits (``docs/protocol.md``, section "Precision").

Channels are equalised. Then each token, or each group of channels in it, has one scale.

A few channels of a ViT are an order of magnitude larger than the others, and they are the same channels in every token.
So each channel is divided by its root mean square over the calibration sample. A few tokens are outliers, too. So each
token has a scale of its own, and nothing is ever clipped. Codes and scales of a token lie together, so that one read
gets both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from losa_cache.cache.precision.base import PerLayerEncoding, Precision, in_parts, relative_error
from losa_cache.errors import UserError
from losa_cache.factors import Codes
from losa_cache.machine.fastest import why_not_triton

SCALE_BYTES = 2  # bfloat16
IMAGES = 32  # some 8000 tokens of a ViT at 224 px
ROUND_UP = 1 + 2**-8  # to the next bfloat16 at least: the largest value of a group stays within the codes


class Integer(Precision):
    """Signed integer codes.

    Args:
        bits: bits of a code: 8, or 4 (two codes in a byte, the even channel in the low half).
        group: number of channels that share a scale, or ``None`` if all channels of a token do.
    """

    dtype = torch.bfloat16
    stored_dtype = torch.uint8
    storage = "uint8"
    fill = 0xFF  # a scale of these bits is NaN
    dimension = "byte"
    images = IMAGES

    def __init__(self, bits: int, group: int | None) -> None:
        self.name, self.bits, self.group = f"int{bits}", bits, group
        self.folds = group is None  # as many products as groups would cost more than decoding
        self.largest = 2 ** (bits - 1) - 1

    def require(self, width: int) -> None:
        """Check that the groups divide the width."""
        self.groups(width)

    def row(self, points: int, tokens: int, width: int) -> tuple[int, int, int]:
        """Give the bytes of each token."""
        return points, tokens, self.columns(width)

    def columns(self, width: int) -> int:
        """Bytes of a token's codes and scales."""
        return self.code_bytes(width) + self.groups(width) * SCALE_BYTES

    def code_bytes(self, width: int) -> int:
        """Bytes of a token's codes."""
        return width * self.bits // 8

    def groups(self, width: int) -> int:
        """Scales of a token."""
        if self.group is not None and width % self.group:
            raise UserError(
                f"precision {self.name} stores groups of {self.group} channels, and the backbone has {width}: "
                "choose int8."
            )
        return width // (self.group or width)

    def fit(self, blocks: Sequence[Tensor], *, tokens: int, prefix: int) -> "IntegerEncoding":
        """Equalise by the root mean square of each channel's finite values."""
        rms = torch.stack([_rms(block.float()) for block in blocks])
        fitted = IntegerEncoding(self, torch.where((rms > 0) & rms.isfinite(), rms, 1.0), [])
        errors = []
        for layer, block in enumerate(blocks):
            errors.append(relative_error(fitted.round(layer, block, None)[0], block))
        return replace(fitted, errors=errors)

    def load(self, constants: Mapping[str, Tensor], *, tokens: int, prefix: int) -> "IntegerEncoding":
        """Rebuild from ``channel`` ``(layers, width)``."""
        channel = constants["channel"]
        if channel.ndim != 2 or not bool((channel.isfinite() & (channel > 0)).all()):
            raise ValueError("the channels' scales are not finite and positive")
        self.groups(channel.shape[1])
        return IntegerEncoding(self, channel.float(), [])


@dataclass(frozen=True)
class IntegerEncoding(PerLayerEncoding):
    """Codes of equalised channels.

    Attributes:
        precision: bits and groups.
        channel: float32 ``(layers, width)``, what each channel is divided by.
        errors: relative error of each layer on the calibration sample; empty if the encoding was loaded.
    """

    precision: Integer
    channel: Tensor
    errors: list[float]

    @cached_property
    def inverse(self) -> Tensor:
        """What each channel is multiplied by, ``(layers, width)``."""
        return self.channel.reciprocal()

    @property
    def _form(self) -> dict[str, int]:
        """Bits of a code and groups of a token."""
        return {"bits": self.precision.bits, "groups": self.precision.groups(self.channel.shape[1])}

    def to(self, device: torch.device) -> "IntegerEncoding":
        """Move the channels' scales."""
        return replace(self, channel=self.channel.to(device))

    def select(self, positions: Sequence[int]) -> "IntegerEncoding":
        """Take the channels' scales of these layers."""
        errors = [self.errors[at] for at in positions] if self.errors else []
        return replace(self, channel=self.channel[list(positions)], errors=errors)

    def columns(self, width: int) -> int:
        """Bytes of a token's codes and scales."""
        return self.precision.columns(width)

    def encode_layer(self, layer: int, block: Tensor, out: Tensor) -> Tensor:
        """Divide, round, pack. A group with an infinite or NaN value gets a NaN scale."""
        inverse = self.inverse[layer]
        if why_not_triton(block.device) is None:
            from losa_cache.cache.precision.kernels import integers

            return integers.encode(block, inverse, out, enlarged=ROUND_UP / self.precision.largest, **self._form)
        extremes = [self._encode(values.float() * inverse, target) for values, target in in_parts(block, out)]
        return torch.stack(extremes).amax()

    def _encode(self, values: Tensor, out: Tensor) -> Tensor:
        width = values.shape[-1]
        grouped = values.unflatten(-1, (self.precision.groups(width), -1))
        largest = grouped.abs().amax(dim=-1, keepdim=True)  # on the CPU 3 x as fast as the infinity norm
        scale = torch.where(largest.isfinite(), largest * (ROUND_UP / self.precision.largest), torch.nan).bfloat16()
        steps = scale.float().reciprocal_().nan_to_num_(0, 0, 0)  # a group of zeros, or of NaN: codes 0
        codes = grouped.mul_(steps).round_().nan_to_num_(0, 0, 0).flatten(-2)
        at = self.precision.code_bytes(width)
        if self.precision.bits == 8:
            out.view(torch.int8)[..., :at].copy_(codes)
        else:
            low, high = codes.to(torch.int8).unflatten(-1, (-1, 2)).unbind(-1)
            out[..., :at].copy_(((high << 4) | (low & 15)).view(torch.uint8))
        out[..., at:].copy_(scale.squeeze(-1).view(torch.uint8))
        return largest.amax()

    def decode_layer(self, layer: int, stored: Tensor) -> Tensor:
        """Unpack, multiply, round to bfloat16."""
        width = self.channel.shape[1]
        out = torch.empty(*stored.shape[:-1], width, dtype=self.precision.dtype, device=stored.device)
        self.decode_into(layer, stored, out)
        return out

    def decode_into(self, layer: int, stored: Tensor, out: Tensor) -> None:
        """Fill bfloat16 ``(batch, tokens, width)`` with what :meth:`decode_layer` gives."""
        if why_not_triton(stored.device) is None:
            from losa_cache.cache.precision.kernels import integers

            integers.decode(stored, self.channel[layer], out, **self._form)
            return
        width = self.channel.shape[1]
        for part, target in in_parts(stored, out):
            at = self.precision.code_bytes(width)
            codes = part[..., :at].view(torch.int8)
            if self.precision.bits == 4:
                codes = torch.stack([codes << 4 >> 4, codes >> 4], dim=-1).flatten(-2)
            scale = part[..., at:].contiguous().view(torch.bfloat16).float()
            values = codes.float().unflatten(-1, (scale.shape[-1], -1)).mul_(scale.unsqueeze(-1))
            target.copy_(values.flatten(-2).mul_(self.channel[layer]))

    def factors(self, stored: Sequence[Tensor], *, rank: int) -> list[Codes] | None:
        """Give codes and scales, if all channels of a token share one scale."""
        if not self.precision.folds:
            return None
        at = self.channel.shape[1]
        return [
            Codes(
                own[..., :at].view(torch.int8),
                own[..., at:].contiguous().view(torch.bfloat16).squeeze(-1),
                self.channel[layer],
                self.precision.dtype,
            )
            for layer, own in enumerate(stored)
        ]

    def saturate(self, stored: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
        """Count the values of groups whose scale is NaN."""
        width = self.channel.shape[1]
        overflowed, non_finite = torch.zeros(2, len(stored), dtype=torch.int64)
        for layer in (~extremes.isfinite()).nonzero().flatten().tolist():
            scales = stored[:, layer, :, self.precision.code_bytes(width) :].contiguous().view(torch.bfloat16)
            non_finite += scales.isnan().sum(dim=(1, 2)) * (width // scales.shape[-1])
        return overflowed, non_finite

    def constants(self) -> dict[str, Tensor]:
        """Give the channels' scales."""
        return {"channel": self.channel}

    def describe(self) -> dict[str, Any]:
        """Say bits, group, and the calibration sample's error by layer."""
        return {
            "bits": self.precision.bits,
            "group": self.precision.group,
            "error": [float(f"{error:.3g}") for error in self.errors],
        }


INTEGERS = (Integer(8, None), Integer(4, 32))


def _rms(block: Tensor) -> Tensor:
    finite = block.isfinite()
    squares = torch.where(finite, block, 0).double().square().sum(dim=(0, 1))
    return (squares / finite.sum(dim=(0, 1))).sqrt().float()
