"""LoSA for video: token layers mix space and time apart (Eq. 6)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from losa_cache.errors import UserError
from losa_cache.sidenet.losa import LowRankMap
from losa_cache.sidenet.network import require_shape
from losa_cache.sidenet.operand import Block, dense, split_start
from losa_cache.sidenet.products import compute_dtype, wide
from losa_cache.sidenet.readout import Readout, Whole

CPU_STATES, GPU_STATES = 2**20, 2**26  # values at a time


class SpaceTimeMap(nn.Module):
    """g = g_spatial + g_temporal on tokens of an n_t x n_s grid, each a low-rank map along its own axis (Eq. 6).

    Args:
        frames: n_t.
        places: n_s.
        rank: r of both.
    """

    def __init__(self, frames: int, places: int, rank: int) -> None:
        super().__init__()
        self.frames, self.places = frames, places
        self.spatial = LowRankMap(places, rank)
        self.temporal = LowRankMap(frames, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, frames * places, width)`` to the same shape; frames change slowest."""
        batch, width = len(x), x.shape[2]
        spatial = mix_rows(self.spatial, x.reshape(batch * self.frames, self.places, width))
        temporal = mix_rows(self.temporal, x.reshape(batch, self.frames, self.places * width))
        return spatial.view_as(x) + temporal.view_as(x)

    def plain(self, x: Tensor) -> Tensor:
        """Map the same as Eq. 6 stands, all states at once."""
        grid = x.unflatten(1, (self.frames, self.places))
        spatial = self.spatial(grid.transpose(2, 3)).transpose(2, 3)
        return (spatial + self.temporal(grid.transpose(1, 3)).transpose(1, 3)).flatten(1, 2)


def mix_rows(g: LowRankMap, x: Tensor) -> Tensor:
    """Apply a low-rank map to the columns of ``(groups, size, columns)``.

    The states, ``(groups, rank, columns)``, are larger than x where the rank exceeds the size, as over time: they are
    made a few columns at a time and made again on the way back, never kept.
    """
    up, up_bias = (g.scale * value for value in (g.up.weight, g.up.bias))
    return _Mix.apply(x, *(value.to(x.dtype) for value in (g.down.weight, g.down.bias, up, up_bias)))


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, down, down_bias, up)
        parts = (functional.gelu(_times(down, x[..., part], down_bias)) for part in _parts(x, len(down)))
        return _joined([_times(up, hidden, up_bias) for hidden in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, down, down_bias, up = ctx.saved_tensors
        (gradient,) = gradients
        dx: list[Tensor] = []
        sums = [torch.zeros_like(value, dtype=wide(x)) for value in (down, down_bias, up)]
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(down)):
                inner, g = _times(down, x[..., part], down_bias), gradient[..., part]
                d_inner = torch.ops.aten.gelu_backward(_times(up.mT, g), inner)
                sums[0] += torch.bmm(d_inner, x[..., part].mT).sum(0)
                sums[1] += d_inner.sum((0, 2))
                sums[2] += torch.bmm(g, functional.gelu(inner).mT).sum(0)
                dx.append(_times(down.mT, d_inner))
        found = (_joined(dx), *sums, gradient.sum((0, 2)))
        return tuple(value.to(x.dtype) for value in found)


def _parts(x: Tensor, rank: int) -> list[slice]:
    """Cut columns so that the states of a part stay in a CPU's cache, or take little of a GPU."""
    groups, _, columns = x.shape
    size = max(1, (CPU_STATES if x.device.type == "cpu" else GPU_STATES) // (groups * rank))
    return [slice(at, at + size) for at in range(0, columns, size)]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _times(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply every group from the left."""
    spread = matrix.expand(len(x), -1, -1)
    return torch.bmm(spread, x) if bias is None else torch.baddbmm(bias[:, None], spread, x)


class VideoLoSA(nn.Module):
    """The side network of a video backbone: LoSA whose token layers are :class:`SpaceTimeMap`.

    Prefix tokens (CLS) have no place on the grid: token layers pass them by, channel layers treat them as any token
    (*not from the paper*, whose ViViTs have none). A temporal map has no low rank to use (r >= n_t), so memory is
    bounded by recomputation in place of the fast form: for the way back a layer keeps its input b_i + y_{i-1}, in the
    dtype of the products, and nothing of its size besides.

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
        inputs, start = split_start(blocks, self.depth)
        y, dtype = start.to(wide(start)), compute_dtype(start, next(self.parameters()))
        with torch.autocast(y.device.type, enabled=False):
            for g, block in zip(self.layers, inputs, strict=True):
                x = (dense([block])[0] + y).to(dtype)
                if isinstance(g, SpaceTimeMap):
                    y = y + functional.pad(g(x[:, self.prefix :]), (0, 0, self.prefix, 0))
                else:
                    y = y + _channels(g, x)
        return (readout or Whole()).rows(y)

    def plain(self, blocks: Sequence[Tensor]) -> Tensor:
        """Refine the backbone's output as Eq. 3 and 6 stand, as :meth:`LoSA.plain` does for images."""
        inputs, start = split_start(blocks, self.depth)
        y = start.to(wide(start))
        for g, b in zip(self.layers, dense(inputs), strict=True):
            x = b + y
            if isinstance(g, SpaceTimeMap):
                y = y + functional.pad(g.plain(x[:, self.prefix :]), (0, 0, self.prefix, 0))
            else:
                y = y + g(x)
        return y


def _channels(g: nn.Module, x: Tensor) -> Tensor:
    """Apply a low-rank map to every token; alpha goes to the matrix, so that the update itself is not kept."""
    assert isinstance(g, LowRankMap)
    inner = functional.linear(x, g.down.weight.to(x.dtype), g.down.bias.to(x.dtype))
    up, up_bias = ((g.scale * value).to(x.dtype) for value in (g.up.weight, g.up.bias))
    return functional.linear(functional.gelu(inner), up, up_bias)
