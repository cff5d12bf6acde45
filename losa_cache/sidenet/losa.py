"""Low-Rank Side Adaptation (Mercea et al., CVPR 2024, Eq. 3-5): as the paper writes it, and in its fast form."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.network import require_shape
from losa_cache.sidenet.operand import Block, dense, split_start
from losa_cache.sidenet.packed import Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN, wide
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.segments import run_segments, segment_length


class LowRankMap(nn.Module):
    """g(x) = alpha * (W_u GELU(W_d x + b_d) + b_u) along the last axis (Eq. 4, with biases).

    Table 1's parameter counts fit only with biases: 2 * rank * size + rank + size + 1 of them.
    The start is *not from the paper*: W_d Kaiming-uniform (as LoRA starts its A), W_u and both biases zero, alpha
    one, so that g = 0.

    Args:
        size: length m of the axis that is mixed.
        rank: inner width r.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank)
        self.up = nn.Linear(rank, size)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., size)`` to ``(..., size)``."""
        return self.scale * self.up(F.gelu(self.down(x)))


class LoSA(nn.Module):
    """The side network: y_0 = b_L, y_i = y_{i-1} + g_i(b_i + y_{i-1}) for i = 1 ... k (Eq. 3).

    g alternates over the side layers between channel mixing (first, along the width, for every token) and token
    mixing (along the tokens, for every channel) (Eq. 5; Table 5's counts fix the order).

    Args:
        depth: number k of side layers, one for each block output.
        tokens: tokens n of a block output, prefix tokens included.
        width: channels d of a block output.
        rank: inner width r of every g, 1 <= rank <= width.

    Raises:
        UserError: if depth, tokens or width is not positive, or the rank lies outside 1 ... width.
    """

    def __init__(self, *, depth: int, tokens: int, width: int, rank: int) -> None:
        super().__init__()
        require_shape(depth, tokens, width, rank)
        self.depth, self.tokens, self.width, self.rank = depth, tokens, width, rank
        sizes = (tokens if kind == TOKEN else width for kind in self.kinds)
        self.layers = nn.ModuleList(LowRankMap(size, rank) for size in sizes)
        self.segment_length = segment_length(self.kinds, rank=rank, tokens=tokens, width=width)

    @staticmethod
    def mixes_tokens(layer: int) -> bool:
        """Tell whether side layer ``layer`` (from 0) mixes tokens rather than channels."""
        return layer % 2 == 1

    @property
    def kinds(self) -> list[int]:
        """Kind of each side layer, ``CHANNEL`` or ``TOKEN``."""
        return [TOKEN if self.mixes_tokens(i) else CHANNEL for i in range(self.depth)]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass (what Table 5 calls GFLOPs): 2 r n d a layer."""
        return 2 * self.depth * self.rank * self.tokens * self.width

    def forward(self, blocks: Sequence[Block], readout: Readout | None = None) -> Tensor:
        """Refine the backbone's output, in the fast form (:mod:`losa_cache.sidenet.fast`).

        Args:
            blocks: the k block outputs, first to last, each ``(batch, tokens, width)``; the last is y_0 = b_L. Or k
                inputs of another kind (Table 4's taps, Table 6's start) followed by y_0. y_0 is a tensor; the others
                may be int8 codes with their scales.
            readout: the m rows of y_k to compute; by default all.

        Returns:
            y_k, ``(batch, m, width)``, in float32 if the blocks have half precision: a sum of many small updates must
            not be rounded to 8 bits after each update. Products are computed in autocast's dtype.
        """
        packed = (self.packed(CHANNEL), self.packed(TOKEN))
        return run_segments(self.kinds, packed, blocks, readout or Whole(), length=self.segment_length)[0]

    def plain(self, blocks: Sequence[Tensor]) -> Tensor:
        """Refine the backbone's output exactly as the equations say: every layer reads and writes whole n x d tensors.

        :meth:`forward` is tested against this.
        """
        inputs, start = split_start(blocks, self.depth)
        y = start.to(wide(start))
        for i, (g, b) in enumerate(zip(self.layers, dense(inputs), strict=True)):
            x = b + y
            y = y + (g(x.transpose(1, 2)).transpose(1, 2) if self.mixes_tokens(i) else g(x))
        return y

    def of_kind(self, kind: int) -> list[LowRankMap]:
        """List the layers of a kind, in their order."""
        layers = cast("list[LowRankMap]", list(self.layers))
        return [layer for this, layer in zip(self.kinds, layers, strict=True) if this == kind]

    def packed(self, kind: int) -> Packed:
        """Pack the layers of a kind as a stack of one."""
        layers, size = self.of_kind(kind), self.width if kind == CHANNEL else self.tokens
        if not layers:
            empty = next(self.parameters()).new_empty(1, 0, self.rank, size)
            return Packed(empty, empty[..., 0], empty, empty[:, :, 0], empty[:, :, 0, 0])
        return Packed(
            torch.stack([layer.down.weight for layer in layers])[None],
            torch.stack([layer.down.bias for layer in layers])[None],
            torch.stack([layer.up.weight for layer in layers]).mT[None],
            torch.stack([layer.up.bias for layer in layers])[None],
            torch.stack([layer.scale for layer in layers])[None],
        )
