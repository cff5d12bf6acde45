"""Codes of 1 to 8 bits as bytes: they are packed one bit plane at a time, by a few operations on whole rows.

Axes are sorted by their bits, most bits first, so plane p, the bits of value 2^p, holds the axes up to some number. The
rows of all planes, one after the other, are cut into eight equal parts, and bit i of a byte comes from part i. So bytes
are packed and unpacked by shifting whole rows. Axes are the first dimension, tokens the last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BYTE = 8


class BitPlanes(NamedTuple):
    """The place of every bit, for R rows of bits, P planes, m axes.

    Attributes:
        axis: int64 ``(8, R / 8)``, the axis whose code bit i of a byte belongs to.
        plane: uint8, of the same shape: which bit of the code it is.
        byte: int64 ``(P, m)``, the byte that holds an axis's bit of a plane.
        bit: uint8, of the same shape: which bit of the byte it is.
        there: uint8, of the same shape: 1 if the axis has the plane.
    """

    axis: Tensor
    plane: Tensor
    byte: Tensor
    bit: Tensor
    there: Tensor

    @classmethod
    def of(cls, bits: Sequence[int]) -> "BitPlanes":
        """Lay out axes of these bits. The bits must be in descending order and add up to whole bytes."""
        there = torch.tensor(bits)[None] > torch.arange(max(bits, default=0))[:, None]
        plane, axis = there.nonzero().unbind(1)
        size = len(axis) // BYTE
        row = torch.zeros(there.shape, dtype=torch.int64).masked_scatter_(there, torch.arange(len(axis)))
        return cls(
            axis.view(BYTE, size),
            plane.view(BYTE, size).to(torch.uint8),
            row % max(1, size),
            (row // max(1, size)).to(torch.uint8),
            there.to(torch.uint8),
        )


def pack(codes: Tensor, planes: BitPlanes) -> Tensor:
    """Give bytes ``(R / 8, tokens)`` of codes ``(m, tokens)``, both uint8; codes are below 2 to the axis's bits."""
    rows = codes.index_select(0, planes.axis.flatten()).view(*planes.axis.shape, codes.shape[1])
    return (((rows >> planes.plane[..., None]) & 1) << _shifts(codes, BYTE)).sum(0, dtype=torch.uint8)


def unpack(packed: Tensor, planes: BitPlanes) -> Tensor:
    """Give the codes of :func:`pack`."""
    if not len(planes.byte):
        return packed
    shifts = _shifts(packed, BYTE)
    codes, *more = ((packed >> shifts) & 1).flatten(0, 1).split(planes.there.sum(1).tolist())
    for row, shift in zip(more, shifts[1:], strict=False):
        codes[: len(row)] |= row << shift
    return codes


def _shifts(like: Tensor, count: int) -> Tensor:
    """Give 0, 1, … along the first of three dimensions: shifts by Python's numbers are several times as slow."""
    return torch.arange(count, dtype=torch.uint8, device=like.device)[:, None, None]
