"""A chain of side layers: its plan, and its parameters as matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from losa_cache.sidenet.products import CHANNEL, TOKEN
from losa_cache.sidenet.readout import Readout

Pair = tuple[Tensor, Tensor]
"""One tensor for each kind of layer."""


@dataclass(frozen=True)
class Chain:
    """Everything but tensors that a pass needs.

    Attributes:
        kinds: kind of each layer, ``CHANNEL`` or ``TOKEN``.
        rank: r.
        readout: the part of y_k to compute.
        dtype: dtype of the products.
        added: whether torch's products are taken with b_i + y_0, so that none with y_0 alone are needed.
    """

    kinds: tuple[int, ...]
    rank: int
    readout: Readout
    dtype: torch.dtype
    added: bool

    def steps(self) -> list[tuple[int, tuple[int, int]]]:
        """For each layer: its kind, and how many layers of each kind come before it."""
        return [
            (kind, (self.kinds[:i].count(CHANNEL), self.kinds[:i].count(TOKEN))) for i, kind in enumerate(self.kinds)
        ]

    def earlier(self, kind: int, other: int, like: Tensor) -> Tensor:
        """Mark which layers of kind ``other`` come before each layer of a kind: ``(L, L')`` of zeros and ones."""
        return _earlier(self.kinds, kind, other, like.dtype, like.device)


@cache
def _earlier(kinds: tuple[int, ...], kind: int, other: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make it once: a copy from the host cannot be part of a CUDA graph, and a graph that reads it may live long."""
    places = [[i for i, this in enumerate(kinds) if this == which] for which in (kind, other)]
    marks = [[float(before < at) for before in places[1]] for at in places[0]]
    with torch.inference_mode(False):
        return torch.tensor(marks, dtype=dtype).reshape(len(places[0]), len(places[1])).to(device)


@dataclass(frozen=True)
class Weights:
    """A chain of side layers as matrices; of each kind L layers of rank r that mix an axis of length m; S trials.

    Attributes:
        down: W_d, ``(S, L * r, m)``.
        up: alpha W_u transposed, ``(S, L * r, m)``.
        pairs: ``down up'``, ``(S, L * r, L * r)``, of which only what belongs to j < i is used.
        shift: E and F, ``(S, L * r, n)`` for channel layers and ``(S, L * r, d)`` for token layers.
    """

    down: Pair
    up: Pair
    pairs: Pair
    shift: Pair

    def to(self, dtype: torch.dtype) -> "Weights":
        """Convert all, and lay them out in order."""
        return Weights.of([tensor.to(dtype).contiguous() for tensor in self.tensors()])

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.down, *self.up, *self.pairs, *self.shift)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Weights":
        """Put :meth:`tensors` together again."""
        return cls(*zip(tensors[::2], tensors[1::2], strict=True))
