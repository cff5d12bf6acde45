"""Pooled rows of a block output: its class token and the mean of its patches, each token layer-normed first.

*Not from the paper*. A probe, attentive fusion and the classifier over all layers read these few rows in place of all
tokens. The norm has no parameters. It removes the scale of a layer and of single tokens, which grows with depth.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.sidenet.backend import norms_by_triton
from losa_cache.sidenet.operand import Block, Gathered, Normed, dense
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.readout import CPU_PART, Mean, Pooled, Readout

EPS = 1e-6
AT_ONCE = 64  # samples that are normed at a time, where there are many


@dataclass(frozen=True)
class Pooling:
    """How tokens are pooled to rows.

    Attributes:
        classes: number of class tokens, which come first; their mean is the first row. 0: there is no such row.
        prefix: number of tokens before the patches (class tokens and registers); the mean of the patches is the last
            row.
    """

    classes: int
    prefix: int

    @property
    def rows(self) -> int:
        """Rows m of a block: 2, or 1 without class tokens."""
        return 2 if self.classes else 1

    def readout(self, tokens: int) -> Readout:
        """Give the readout of the same rows, for tokens that are normed already."""
        return Pooled(tokens, self.classes, self.prefix) if self.classes else Mean(tokens, self.prefix)

    def __call__(self, block: Tensor) -> Tensor:
        """Pool ``(batch, n, d)`` to ``(batch, m, d)``, in float32 or wider."""
        return torch.cat([self.rows_of(part) for part in _normed_parts(block)])

    def pooled(self, block: Block) -> Tensor:
        """Pool a block output of any form: to the rows of :meth:`read`, bit for bit, without the tokens if that saves
        something.
        """
        if isinstance(block, Normed):
            return block.pooled
        return self.by_triton(block)[1] if self._by_triton(block) else self(dense([block])[0])

    def read(self, block: Block) -> tuple[Tensor | Gathered, Tensor]:
        """Give what :meth:`normed` does, also of a block that is normed already."""
        return (block.tokens, block.pooled) if isinstance(block, Normed) else self.normed(block)

    def normed(self, block: Block) -> tuple[Tensor, Tensor]:
        """Give the normed tokens ``(batch, n, d)``, in the block's dtype, and the rows of :meth:`__call__`.

        On a GPU a kernel computes both in one pass, if that is faster.
        """
        return self.by_triton(block) if self._by_triton(block) else self.by_torch(block)

    def _by_triton(self, block: Block) -> bool:
        return norms_by_triton(block, self.by_triton, self.by_torch)

    def by_torch(self, block: Block) -> tuple[Tensor, Tensor]:
        """Give what :meth:`normed` does, by torch's operations."""
        block = dense([block])[0]
        normed, rows = torch.empty_like(block), []
        at = 0
        for part in _normed_parts(block):
            normed[at : at + len(part)] = part
            rows.append(self.rows_of(part))
            at += len(part)
        return normed, torch.cat(rows)

    def by_triton(self, block: Block) -> tuple[Tensor, Tensor]:
        """Give what :meth:`normed` does, by a kernel; of a block that it can read."""
        from losa_cache.sidenet.kernels import norm

        assert isinstance(block, Tensor | Gathered)
        normed, rows = norm.normed(block, classes=self.classes, prefix=self.prefix, eps=EPS)
        return normed, rows[:, -self.rows :]

    def norm_in_place(self, blocks: Sequence[Tensor]) -> Tensor:
        """Norm the tokens of block outputs ``(N, n, d)`` where they lie, and give their rows, ``(N, k, m, d)``."""
        count, _, width = blocks[0].shape
        pooled = blocks[0].new_empty(count, len(blocks), self.rows, width, dtype=wide(blocks[0]))
        for number, block in enumerate(blocks):
            for at in range(0, count, AT_ONCE):
                part = block[at : at + AT_ONCE]
                normed, pooled[at : at + AT_ONCE, number] = self.normed(part)
                part.copy_(normed)
        return pooled

    def rows_of(self, normed: Tensor) -> Tensor:
        """Pool tokens that are normed already, ``(batch, n, d)``, to ``(batch, m, d)``."""
        rows = [normed[:, : self.classes].mean(1)] if self.classes else []
        return torch.stack([*rows, normed[:, self.prefix :].mean(1)], 1)


def _normed_parts(block: Tensor) -> Iterator[Tensor]:
    """Norm a few samples at a time on the CPU, so that a part stays in its cache; all at once elsewhere."""
    batch, tokens, width = block.shape
    size = batch if block.device.type != "cpu" else CPU_PART // (tokens * width)
    for part in block.split(max(1, size)):
        yield F.layer_norm(part.to(wide(part)), (width,), eps=EPS)


def tail_of_pooled(width: int, rows: int) -> dict[str, Any]:
    """Give the config of the tail behind pooled rows, which hold its features already: it reads row 0 as it is."""
    identity = {"type": "identity"}
    return {
        "width": width,
        "prefix_tokens": rows - 1,
        "pool": "token",
        "class_tokens": 1,
        "pool_prefix": False,
        "norm": identity,
        "fc_norm": identity,
    }


def pooling_of(tail: Mapping[str, Any]) -> Pooling:
    """Say how the tokens of a trunk are pooled, from its tail's config (``docs/protocol.md``, section "Tail")."""
    prefix: int = tail["prefix_tokens"]
    return Pooling(min(tail["class_tokens"], prefix), prefix)
