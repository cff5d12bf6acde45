"""A layer's input b_i as the fast form meets it: only ever in products, so that int8 codes need not be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from losa_cache.sidenet.products import TOKEN, correlate, project, wide


@dataclass(frozen=True)
class Scaled:
    """A block output as codes: value = code x scale of its token x scale of its channel, rounded to ``dtype``.

    Attributes:
        codes: integers ``(batch, n, d)``, of at most 8 bits, so that every float dtype holds them exactly.
        tokens: ``(batch, n)``.
        channels: ``(d,)``.
        dtype: of the values.
    """

    codes: Tensor
    tokens: Tensor
    channels: Tensor
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """Decode."""
        return (self.codes.float() * self.tokens.float()[..., None] * self.channels.float()).to(self.dtype)


Block = Tensor | Scaled


def dense(blocks: Sequence[Block]) -> list[Tensor]:
    """Decode what is not a tensor yet."""
    return [block.dense() if isinstance(block, Scaled) else block for block in blocks]


def split_start(blocks: Sequence[Block], depth: int) -> tuple[Sequence[Block], Tensor]:
    """Tell the k inputs of a side network from y_0, which is the last of them or stands behind them.

    Raises:
        ValueError: for another number of blocks.
    """
    if len(blocks) not in (depth, depth + 1):
        raise ValueError(f"a side network of depth {depth} takes {depth} block outputs, not {len(blocks)}.")
    return blocks[:depth], dense(blocks[-1:])[0]


class Operand(Protocol):
    """b_i, or b_i + y_0, ``(batch, n, d)``, which S trials share, times matrices of a kind."""

    def add_product(self, kind: int, out: Tensor, weight: Tensor) -> None:
        """Add the product with weight ``(S, r, m)`` to ``out`` ``(S, r, batch, q)``."""
        ...

    def correlate(self, kind: int, states: Tensor) -> Tensor:
        """Give the gradient of the weight, ``(S, r, m)``, from that of the product, ``(S, r, batch, q)``."""
        ...


def operand(block: Block, dtype: torch.dtype, start: Tensor | None) -> Operand:
    """Choose the operand for a block, and for y_0 ``(batch, n, d)`` where it is to be added first."""
    if isinstance(block, Scaled):
        return Folded(block, dtype) if start is None else Dense(block.dense(), dtype, start)
    return Dense(block, dtype, start)


class Dense:
    """A tensor, with y_0 added anew whenever it is read: the sum is never kept."""

    def __init__(self, block: Tensor, dtype: torch.dtype, start: Tensor | None) -> None:
        self._block, self._dtype, self._start = block, dtype, start

    def add_product(self, kind: int, out: Tensor, weight: Tensor) -> None:
        """Multiply and add."""
        out += project(kind, self._values(), weight)

    def correlate(self, kind: int, states: Tensor) -> Tensor:
        """Sum over samples and the axis that is not mixed."""
        return correlate(kind, self._values(), states)

    def _values(self) -> Tensor:
        return (self._block if self._start is None else self._block + self._start).to(self._dtype)[None]


class Folded:
    """Codes, whose scales move into the small factors of every product: the values are never written.

    On two CPU cores an int8 block costs 2 conversions of 1.3 ms in place of a decoding of 5 ms (ViT-B, 64 images).
    """

    def __init__(self, block: Scaled, dtype: torch.dtype) -> None:
        self._codes, self._dtype = block.codes, dtype
        self._tokens, self._channels = block.tokens.to(dtype), block.channels.to(dtype)

    def add_product(self, kind: int, out: Tensor, weight: Tensor) -> None:
        """Scale the weight along the axis that is mixed, and the result along the other."""
        codes = self._codes.to(self._dtype)
        if kind == TOKEN:
            trials, rows, n = weight.shape
            by_sample = weight.reshape(1, trials * rows, n) * self._tokens[:, None]
            found = torch.bmm(by_sample, codes).view(len(codes), trials, rows, -1).permute(1, 2, 0, 3)
            out.addcmul_(found, self._channels)
        else:
            out.addcmul_(project(kind, codes[None], weight * self._channels), self._tokens)

    def correlate(self, kind: int, states: Tensor) -> Tensor:
        """Scale the states along the axis that is summed over, and the result along the other."""
        codes = self._codes.to(self._dtype)
        if kind == TOKEN:
            trials, rows, batch, d = states.shape
            by_sample = (states * self._channels).permute(2, 0, 1, 3).reshape(batch, trials * rows, d)
            found = (torch.bmm(codes, by_sample.mT) * self._tokens[..., None]).sum(0, dtype=wide(codes))
            return found.mT.reshape(trials, rows, -1)
        return correlate(kind, codes[None], states * self._tokens) * self._channels
