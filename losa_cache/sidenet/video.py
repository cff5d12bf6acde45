"""LoSA for video: token layers mix space and time apart (Eq. 6)."""

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from losa_cache.errors import UserError
from losa_cache.sidenet.losa import LowRankMap, require_shape
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.readout import Readout, Whole


class SpaceTimeMap(nn.Module):
    """g = g_spatial + g_temporal on tokens of an n_t x n_s grid, each a low-rank map along its own axis (Eq. 6).

    Args:
        frames: n_t.
        places: n_s.
        rank: r of both.
    """

    def __init__(self, frames: int, places: int, rank: int) -> None:
        super().__init__()
        self.frames = frames
        self.spatial = LowRankMap(places, rank)
        self.temporal = LowRankMap(frames, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, frames * places, width)`` to the same shape; frames change slowest."""
        grid = x.unflatten(1, (self.frames, -1))
        spatial = self.spatial(grid.transpose(2, 3)).transpose(2, 3)
        temporal = self.temporal(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (spatial + temporal).flatten(1, 2)


class VideoLoSA(nn.Module):
    """The side network of a video backbone: LoSA whose token layers are :class:`SpaceTimeMap`.

    Prefix tokens (CLS) have no place on the grid: token layers pass them by, channel layers treat them as any token
    (*not from the paper*, whose ViViTs have none). A temporal map has no low rank to use (r >= n_t), so memory is
    bounded by recomputation in place of the fast form: y is kept after every sqrt(k) layers, the layers between are run
    again on the way back.

    Table 2's counts (3.61, 4.78, 6.53, 8.03 M for ViViT-H, g, G, e at r = 64) are higher than this network's by about
    317 d, of unknown origin.

    Args:
        depth: number k of side layers.
        frames, places: n_t and n_s.
        prefix: tokens before the grid's.
        width: channels d.
        rank: r of every map, 1 <= rank <= width.

    Raises:
        UserError: for a size below 1, or a rank above the width.
    """

    def __init__(self, *, depth: int, frames: int, places: int, prefix: int, width: int, rank: int) -> None:
        super().__init__()
        require_shape(depth, prefix + frames * places, width, rank)
        if min(frames, places) < 1:
            raise UserError(f"a video's grid is {frames} x {places}: both must be at least 1.")
        self.depth, self.tokens, self.width, self.rank = depth, prefix + frames * places, width, rank
        self.prefix = prefix
        self.layers = nn.ModuleList(
            SpaceTimeMap(frames, places, rank) if i % 2 else LowRankMap(width, rank) for i in range(depth)
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        per_map = 2 * self.rank * self.width
        grid = self.tokens - self.prefix
        return per_map * sum(2 * grid if i % 2 else self.tokens for i in range(self.depth))

    def forward(self, blocks: Sequence[Block], readout: Readout | None = None) -> Tensor:
        """Refine the backbone's output (arguments and result as of :meth:`LoSA.forward`)."""
        if len(blocks) not in (self.depth, self.depth + 1):
            raise ValueError(f"a network of depth {self.depth} takes {self.depth} inputs, not {len(blocks)}.")
        (start,) = dense(blocks[-1:])
        y = start.to(wide(start))
        length = max(1, isqrt(self.depth))
        for first in range(0, self.depth, length):
            part = slice(first, min(first + length, self.depth))
            if torch.is_grad_enabled():
                y = checkpoint(self._run, part, y, blocks, use_reentrant=False)
            else:
                y = self._run(part, y, blocks)
        return (readout or Whole()).rows(y)

    def _run(self, part: slice, y: Tensor, blocks: Sequence[Block]) -> Tensor:
        for g, block in zip(self.layers[part], blocks[part], strict=True):
            x = dense([block])[0] + y
            y = y + (F.pad(g(x[:, self.prefix :]), (0, 0, self.prefix, 0)) if isinstance(g, SpaceTimeMap) else g(x))
        return y
