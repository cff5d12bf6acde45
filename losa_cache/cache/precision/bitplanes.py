"""Codes of 1 to 8 bits as bytes, whatever their bits: plane by plane, by a few operations on whole rows.

Axes stand in the order of falling bits, so plane p, the bits of value 2^p, holds the first ``counts[p]`` axes. The
rows of all planes, one behind the other, are cut into eight equal parts, and bit i of a byte comes from part i: bytes
are put together, and taken apart, by shifting whole rows. Axes come first, tokens last.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BYTE = 8


def counts_of(bits: Sequence[int]) -> list[int]:
    """Count the axes in every plane; ``bits`` fall."""
    return [sum(own > plane for own in bits) for plane in range(max(bits, default=0))]


def pack(codes: Tensor, counts: Sequence[int]) -> Tensor:
    """Give bytes ``(sum(counts) / 8, ...)`` of codes ``(axes, ...)``, both uint8.

    Args:
        codes: below 2 to the power of the axis's bits.
        counts: axes in every plane, together a multiple of 8.
    """
    if not counts:
        return codes
    bits = _bits(codes)
    rows = torch.cat([(codes[:count] >> bits[plane]) & 1 for plane, count in enumerate(counts)])
    parts = rows.unflatten(0, (BYTE, -1)) << bits.view(BYTE, *[1] * codes.ndim)
    return parts.sum(0, dtype=torch.uint8)


def unpack(packed: Tensor, counts: Sequence[int]) -> Tensor:
    """Give the codes of :func:`pack`."""
    if not counts:
        return packed
    bits = _bits(packed)
    rows = (packed >> bits.view(BYTE, *[1] * packed.ndim)) & 1
    codes, *more = rows.flatten(0, 1).split(list(counts))
    for plane, row in enumerate(more, 1):
        codes[: len(row)] |= row << bits[plane]
    return codes


def _bits(like: Tensor) -> Tensor:
    """Give 0 ... 7 as a tensor: shifts by Python's numbers are several times as slow."""
    return torch.arange(BYTE, dtype=torch.uint8, device=like.device)
