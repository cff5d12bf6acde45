"""Pooled rows of a block output: its class token and the mean of its patches, each token layer-normed first.

*Not from the paper*. A probe, attentive fusion and the all-layer classifier read these few rows in place of all tokens.
The norm has no parameters: it takes away the size of a layer and of single tokens, which grows with depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.sidenet.products import wide
from losa_cache.sidenet.readout import CPU_PART

EPS = 1e-6


@dataclass(frozen=True)
class Pooling:
    """Which tokens make which row.

    Attributes:
        classes: class tokens, which come first; their mean is the first row. 0: there is no such row.
        prefix: tokens that are not patches, class tokens and registers: the mean of all behind them is the last row.
    """

    classes: int
    prefix: int

    @property
    def rows(self) -> int:
        """Rows m of a block: 2, or 1 without class tokens."""
        return 2 if self.classes else 1

    def __call__(self, block: Tensor) -> Tensor:
        """Pool ``(batch, n, d)`` to ``(batch, m, d)``, in float32 or wider; on the CPU a few samples at a time."""
        batch, tokens, width = block.shape
        size = batch if block.device.type != "cpu" else max(1, CPU_PART // (tokens * width))
        return torch.cat([self._pooled(part) for part in block.split(max(1, size))])

    def _pooled(self, block: Tensor) -> Tensor:
        normed = F.layer_norm(block.to(wide(block)), block.shape[-1:], eps=EPS)
        rows = [normed[:, : self.classes].mean(1)] if self.classes else []
        return torch.stack([*rows, normed[:, self.prefix :].mean(1)], 1)


def pooling_of(tail: Mapping[str, Any]) -> Pooling:
    """Say how the tokens of a trunk are pooled, from its tail's config (``docs/protocol.md``, section "Tail")."""
    prefix: int = tail["prefix_tokens"]
    return Pooling(min(tail["class_tokens"], prefix), prefix)
