"""A layer's input b_i in the fast form. It appears only in products, so that int8 codes need not be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from losa_cache.factors import Codes, Product
from losa_cache.sidenet.products import TOKEN, correlate, project, wide


@dataclass(frozen=True)
class Gathered:
    """A block output as rows of a tensor that holds the block outputs of many samples.

    Attributes:
        kept: ``(N, n, d)``.
        rows: int64 ``(batch,)``.
    """

    kept: Tensor
    rows: Tensor

    def dense(self) -> Tensor:
        """Copy the rows."""
        return self.kept.index_select(0, self.rows)


@dataclass(frozen=True)
class Normed:
    """A block output whose tokens are layer-normed already, and the rows that were pooled from them before rounding.

    Attributes:
        kept: normed tokens ``(batch, n, d)``; with ``places`` those of many samples, ``(N, n, d)``.
        pooled: rows of the batch, float32 or wider, ``(batch, m, d)`` (:class:`losa_cache.sidenet.pooled.Pooling`).
        places: int64 ``(batch,)``, where the samples of the batch are in ``kept``.
    """

    kept: Tensor
    pooled: Tensor
    places: Tensor | None = None

    @property
    def tokens(self) -> Tensor | Gathered:
        """The normed tokens as a block output."""
        return self.kept if self.places is None else Gathered(self.kept, self.places)

    def dense(self) -> Tensor:
        """Refuse: the values before the norm were not kept."""
        raise TypeError("the values of a normed block output were not kept")


@dataclass(frozen=True)
class Projected:
    """A block output of which only the product with the matrices of the layer that reads it is kept.

    It is for predictions only: it has no backward pass.

    Attributes:
        product: with W_d of the layer, ``(S, r, batch, q)``.
    """

    product: Tensor

    def dense(self) -> Tensor:
        """Refuse: the values were not kept."""
        raise TypeError("a projected block output cannot be read")

    def add_product(self, kind: int, out: Tensor, weight: Tensor) -> None:
        """Add the product that was kept."""
        out += self.product

    def correlate(self, kind: int, states: Tensor) -> Tensor:
        """Refuse: the gradient of W_d needs the values."""
        raise TypeError("a projected block output has no gradient")


Block = Tensor | Codes | Product | Gathered | Normed | Projected


def dense(blocks: Sequence[Block]) -> list[Tensor]:
    """Decode a block output that is no tensor."""
    return [block if isinstance(block, Tensor) else block.dense() for block in blocks]


def split_start(blocks: Sequence[Block], depth: int) -> tuple[Sequence[Block], Tensor]:
    """Separate the k inputs of a side network from y_0, which is the last of them or follows them.

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
    """Choose the operand for a block, and for y_0 ``(batch, n, d)`` if it is added first."""
    if isinstance(block, Tensor | Gathered):
        return Dense(block, dtype, start)
    if isinstance(block, Projected):
        return block
    if isinstance(block, Normed):
        raise TypeError("a side network reads the tokens of a normed block output")
    if start is not None:
        return Dense(block.dense(), dtype, start)
    return Folded(block, dtype) if isinstance(block, Codes) else Factored(block, dtype)


class Dense:
    """A tensor, or rows of one. y_0 is added whenever it is read: neither rows nor sum are stored."""

    def __init__(self, block: Tensor | Gathered, dtype: torch.dtype, start: Tensor | None) -> None:
        self._block, self._dtype, self._start = block, dtype, start

    def add_product(self, kind: int, out: Tensor, weight: Tensor) -> None:
        """Multiply and add."""
        out += project(kind, self._values(), weight)

    def correlate(self, kind: int, states: Tensor) -> Tensor:
        """Sum over samples and the axis that is not mixed."""
        return correlate(kind, self._values(), states)

    def _values(self) -> Tensor:
        (block,) = dense([self._block])
        return (block if self._start is None else block + self._start).to(self._dtype)[None]


class Folded:
    """Codes. Their scales are multiplied into the small factors of every product, so the values are never written.

    On two CPU cores an int8 block takes 2 conversions of 1.3 ms instead of a decoding of 5 ms (ViT-B, 64 images).
    """

    def __init__(self, block: Codes, dtype: torch.dtype) -> None:
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


class Factored:
    """A product of two factors that is never multiplied out: every product with it uses the factors.

    These come first in ``left``, so that for both kinds the batch is part of one large matrix.
    """

    def __init__(self, block: Product, dtype: torch.dtype) -> None:
        count, self._batch, self._tokens = block.left.shape
        left = block.left.to(dtype)
        self._by_column = left.reshape(count, self._batch * self._tokens)
        self._by_sample = left.reshape(count * self._batch, self._tokens)
        self._count, self._right, self._mean = count, block.right.to(dtype), block.mean.to(dtype)
        self._prefix = block.prefix.to(dtype)[None]
        self._first = self._prefix.shape[2]  # of the other tokens

    def add_product(self, kind: int, out: Tensor, weight: Tensor) -> None:
        """Multiply by the shared matrix first if channels are mixed, last if tokens are mixed."""
        trials, rank = weight.shape[:2]
        rows = trials * rank
        if kind == TOKEN:
            own = weight[..., self._first :].reshape(rows, self._tokens)
            found = (self._by_sample @ own.mT).view(self._count, self._batch, rows)
            by_row = found.permute(2, 1, 0).reshape(rows * self._batch, self._count)
            out += (by_row @ self._right).view_as(out)
            out += own.sum(1).view(trials, rank, 1, 1) * self._mean
            if self._first:
                out += project(kind, self._prefix, weight[..., : self._first].contiguous())
            return
        small = weight.reshape(rows, weight.shape[2]) @ self._right.mT
        found = (small @ self._by_column).view(trials, rank, self._batch, self._tokens)
        out[..., self._first :] += found + (weight @ self._mean)[..., None, None]
        if self._first:
            out[..., : self._first] += project(kind, self._prefix, weight)

    def correlate(self, kind: int, states: Tensor) -> Tensor:
        """Multiply in the opposite order."""
        trials, rank, batch, length = states.shape
        rows = trials * rank
        if kind == TOKEN:
            by_row = (states.reshape(rows * batch, length) @ self._right.mT).view(rows, batch, self._count)
            found = by_row.transpose(1, 2).reshape(rows, self._count * batch) @ self._by_sample
            found = (found + (states @ self._mean).sum(2).view(rows, 1)).view(trials, rank, self._tokens)
            return torch.cat([correlate(kind, self._prefix, states), found], -1) if self._first else found
        own = states[..., self._first :].reshape(rows, batch * self._tokens)
        found = (own @ self._by_column.mT) @ self._right + own.sum(1, keepdim=True) * self._mean
        found = found.view(trials, rank, len(self._mean))
        if self._first:
            found = found + correlate(kind, self._prefix, states[..., : self._first].contiguous())
        return found
