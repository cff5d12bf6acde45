"""One side layer's states from those of the layers before it (on the way back: after it), for all samples at once.

Two kernels a layer. The first makes the small matrices between this layer and those of the other kind, a product over a
whole axis. The second adds up all corrections, in float32, and applies the GELU, or its derivative on the way back.
"""

import triton
import triton.language as tl
from torch import Tensor

from losa_cache.sidenet.kernels.tiles import Tiles, precision_of
from losa_cache.sidenet.kernels.values import TYPES


@triton.jit
def _cross(
    left, states, out, batch, layer, first, lines_seen,
    rows: tl.constexpr, other: tl.constexpr, rank: tl.constexpr, m: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    lines: tl.constexpr, step: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """out[s, layer, :, b, j] = left[s, own rows] (r, m) times states[s, j, b] (m,), for j from ``first`` on."""
    trial = tl.program_id(1).to(tl.int64)
    line = tl.program_id(0) * lines + tl.arange(0, lines)
    row = tl.arange(0, group)
    there = line < lines_seen
    at = states + ((trial * other + first) * batch + line) * m
    own = left + (trial * rows + layer * rank + row) * m
    total = tl.zeros((lines, group), dtype=tl.float32)
    for k in range(0, m, step):
        place = k + tl.arange(0, step)
        x = tl.load(at[:, None] + place[None, :], mask=there[:, None] & (place < m)[None, :], other=0)
        w = tl.load(own[None, :] + place[:, None], mask=(row < rank)[None, :] & (place < m)[:, None], other=0)
        total = tl.dot(x, w, total, input_precision=precision)
    j, sample = first + line // batch, line % batch
    to = out + ((trial * rows + layer * rank + row)[None, :] * batch + sample[:, None]) * other + j[:, None]
    tl.store(to, total.to(dtype), mask=there[:, None] & (row < rank)[None, :])


@triton.jit
def _advance(
    x, states, inner, shift, pairs, cross, spread, batch, layer, same_first, same_last, other_first, other_last,
    rows: tl.constexpr, other: tl.constexpr, rank: tl.constexpr, q: tl.constexpr, back: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    columns: tl.constexpr, step: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Complete ``x`` (S, rows, batch, q) for the rows of one layer.

    On the way forth x gets its pre-activations and ``states`` their GELU. On the way back ``states`` is x itself, and x
    gets the gradient of the pre-activations ``inner``.
    """
    parts = tl.cdiv(q, columns)
    sample = (tl.program_id(0) // parts).to(tl.int64)
    trial = tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) % parts) * columns + tl.arange(0, columns)
    row = tl.arange(0, group)
    inside = (row < rank)[:, None] & (column < q)[None, :]
    own = trial * rows + layer * rank + row
    place = (own[:, None] * batch + sample) * q + column[None, :]
    total = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    if not back:
        total += tl.load(shift + own[:, None] * q + column[None, :], mask=inside, other=0).to(tl.float32)
    for k in range(same_first, same_last, step):
        j = k + tl.arange(0, step)
        if back:  # the transpose
            at = pairs + (trial * rows + j[None, :]) * rows + layer * rank + row[:, None]
        else:
            at = pairs + own[:, None] * rows + j[None, :]
        a = tl.load(at, mask=(row < rank)[:, None] & (j < same_last)[None, :], other=0)
        b = tl.load(
            states + ((trial * rows + j[:, None]) * batch + sample) * q + column[None, :],
            mask=(j < same_last)[:, None] & (column < q)[None, :],
            other=0,
        )
        total = tl.dot(a, b, total, input_precision=precision)
    for k in range(other_first, other_last, step):
        j = k + tl.arange(0, step)
        a = tl.load(
            cross + (own[:, None] * batch + sample) * other + j[None, :],
            mask=(row < rank)[:, None] & (j < other_last)[None, :],
            other=0,
        )
        b = tl.load(
            spread + (trial * other + j[:, None]) * q + column[None, :],
            mask=(j < other_last)[:, None] & (column < q)[None, :],
            other=0,
        )
        total = tl.dot(a, b, total, input_precision=precision)
    if back:
        p = tl.load(inner + place, mask=inside, other=0).to(tl.float32)
        slope = 0.5 * (1 + tl.erf(p * 0.7071067811865476)) + p * 0.3989422804014327 * tl.exp(-0.5 * p * p)
        tl.store(x + place, (total * slope).to(dtype), mask=inside)
    else:
        rounded = total.to(dtype)
        p = rounded.to(tl.float32)
        tl.store(x + place, rounded, mask=inside)
        tl.store(states + place, (0.5 * p * (1 + tl.erf(p * 0.7071067811865476))).to(dtype), mask=inside)


def cross_layer(left: Tensor, states: Tensor, out: Tensor, layer: int, seen: range, tiles: Tiles) -> None:
    """Fill what a layer sees of states of the other kind.

    Args:
        left: matrices of the layer's kind, ``(S, L * r, m)``.
        states: of the other kind, ``(S, J, batch, m)``.
        out: ``(S, L, r, batch, J)``; its entries for this layer and the states seen are filled.
        layer: its number among those of its kind.
        seen: rows of ``states``, in 0 ... J.
        tiles: sizes of the kernels' tiles.
    """
    if not len(seen):
        return
    trials, other, batch, m = states.shape
    rank = out.shape[2]
    lines = len(seen) * batch
    grid = (triton.cdiv(lines, tiles.cross["lines"]), trials)
    _cross[grid](
        left, states, out, batch, layer, seen.start, lines,
        rows=left.shape[1], other=other, rank=rank, m=m, dtype=TYPES[left.dtype], precision=precision_of(left.dtype),
        group=tiles.whole(rank), **tiles.cross,
    )  # fmt: skip


def advance_layer(
    x: Tensor,
    states: Tensor,
    pairs: Tensor,
    cross: Tensor,
    spread: Tensor,
    *,
    layer: int,
    same: range,
    other: range,
    tiles: Tiles,
    shift: Tensor | None = None,
    inner: Tensor | None = None,
) -> None:
    """Complete the rows of a layer, forth (with ``shift``) or back (with ``inner``).

    Args:
        x: of the layer's kind, ``(S, L * r, batch, q)``: products with the activations, or what the readout sends back.
        states: of its kind, like x; back x itself.
        pairs: ``(S, L * r, L * r)``, used transposed on the way back.
        cross: as :func:`cross_layer` fills it.
        spread: matrices of the other kind, ``(S, J, q)``.
        layer: its number among those of its kind.
        same, other: rows of ``states`` and of ``spread`` that it sees.
        tiles: sizes of the kernels' tiles.
        shift: what biases add, ``(S, L * r, q)``.
        inner: pre-activations, like x.
    """
    trials, rows, batch, q = x.shape
    back = inner is not None
    rank = cross.shape[2]
    grid = (batch * triton.cdiv(q, tiles.advance["columns"]), trials)
    _advance[grid](
        x, states, inner if inner is not None else x, shift if shift is not None else x, pairs, cross, spread,
        batch, layer, same.start, same.stop, other.start, other.stop,
        rows=rows, other=spread.shape[1], rank=rank, q=q, back=back, dtype=TYPES[x.dtype],
        precision=precision_of(x.dtype), group=tiles.whole(rank), **tiles.advance,
    )  # fmt: skip
