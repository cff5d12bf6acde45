"""The fast form of LoSA for the forward pass alone, without a step in place: what exporters can trace.

What LoSA computes in training (:mod:`losa_cache.sidenet.fast`) is an autograd function that writes into parts of its
buffers. ``torch.export`` records it, but neither ONNX nor torch's own compilers take what is recorded.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.losa import LoSA, LowRankMap
from losa_cache.sidenet.operand import split_start
from losa_cache.sidenet.products import TOKEN, wide
from losa_cache.sidenet.readout import Readout, Whole


class Sums(nn.Module):
    """A LoSA whose y is never built: it is y_0, a sum of products, and two sums of biases.

    Channel layer j adds H_j U_j, token layer j adds V_j' K_j, with H_j ``(batch, n, r)`` and K_j ``(batch, r, d)`` of
    each sample, U_j ``(r, d)`` and V_j ``(r, n)`` parameters. A layer sees of y what its W_d makes of every term.

    Args:
        side: for images.
    """

    def __init__(self, side: LoSA) -> None:
        super().__init__()
        self.side = side

    def forward(self, blocks: Sequence[Tensor], readout: Readout | None = None) -> Tensor:
        """Refine the backbone's output (arguments and result as of :meth:`LoSA.forward`)."""
        inputs, y_0 = split_start(blocks, self.side.depth)
        y_0, readout = y_0.to(wide(y_0)), readout or Whole()
        h: list[Tensor] = []
        u: list[Tensor] = []
        k: list[Tensor] = []
        v: list[Tensor] = []
        to_channels, to_tokens = y_0.new_zeros(self.side.width), y_0.new_zeros(self.side.tokens)
        layers = cast("list[LowRankMap]", list(self.side.layers))
        for g, kind, b in zip(layers, self.side.kinds, cast("Sequence[Tensor]", inputs), strict=True):
            x, w = b + y_0, g.down.weight
            up, bias = g.scale * g.up.weight.mT, g.scale * g.up.bias
            if kind == TOKEN:
                inner = w @ x + (g.down.bias + w @ to_tokens)[:, None] + w.sum(1)[:, None] * to_channels
                if h:
                    inner = inner + (w @ torch.cat(h, -1)) @ torch.cat(u)
                if k:
                    inner = inner + (w @ torch.cat(v).mT) @ torch.cat(k, 1)
                k.append(F.gelu(inner))
                v.append(up)
                to_tokens = to_tokens + bias
            else:
                inner = F.linear(x, w, g.down.bias + w @ to_channels) + to_tokens[:, None] * w.sum(1)
                if h:
                    inner = inner + torch.cat(h, -1) @ (torch.cat(u) @ w.mT)
                if k:
                    inner = inner + torch.cat(v).mT @ (torch.cat(k, 1) @ w.mT)
                h.append(F.gelu(inner))
                u.append(up)
                to_channels = to_channels + bias
        rows = readout.rows(y_0) + to_channels + readout.select(to_tokens)[:, None]
        rows = rows + readout.select(torch.cat(h, -1).mT).mT @ torch.cat(u)  # the first layer is of channels
        return rows + readout.select(torch.cat(v)).mT @ torch.cat(k, 1) if k else rows
