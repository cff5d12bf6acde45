"""Block outputs that are known as factors: what multiplies them need not write their values.

An encoding of a cache gives them (``losa_cache.cache.precision``), and a side network multiplies them
(``losa_cache.sidenet.operand``); neither knows the other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
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


@dataclass(frozen=True)
class Product:
    """A block output as a product: M columns a token, times a matrix that all tokens share, behind prefix tokens.

    Attributes:
        left: ``(M, batch, n)``.
        right: ``(M, d)``.
        mean: what is added to every token of the product, ``(d,)``.
        prefix: values of the prefix tokens, ``(batch, prefix, d)``.
        dtype: of the values.
    """

    left: Tensor
    right: Tensor
    mean: Tensor
    prefix: Tensor
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """Multiply."""
        count, batch, tokens = self.left.shape
        found = self.left.reshape(count, batch * tokens).mT @ self.right
        return torch.cat([self.prefix, (found + self.mean).view(batch, tokens, -1).to(self.dtype)], 1)
