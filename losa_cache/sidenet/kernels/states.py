"""The states of all side layers, from the first to the last or back, by one kernel.

Samples do not depend on one another, so a program follows one sample (of one trial) through the whole chain. What it
writes it reads again soon, from a cache near it: no layer waits for the others' samples, and nothing is launched
between two layers.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.sidenet.chain import Chain, Pair, Weights
from losa_cache.sidenet.kernels.tiles import LOW, Tiles, precision_of, whole
from losa_cache.sidenet.kernels.values import TYPES
from losa_cache.sidenet.products import CHANNEL, TOKEN


@triton.jit
def _layer(
    x, states, inner, shift, pairs, cross, left, others, spread,
    trial, sample, batch, layer, same_first, same_last, other_first, other_last,
    rows: tl.constexpr, other: tl.constexpr, rank: tl.constexpr, q: tl.constexpr, m: tl.constexpr, back: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr, group: tl.constexpr,
    lines: tl.constexpr, step: tl.constexpr, columns: tl.constexpr, inner_step: tl.constexpr,
):  # fmt: skip
    """Complete the rows of one layer in ``x`` (S, rows, batch, q).

    First the small matrices between this layer and those of the other kind, a product of ``left`` (S, rows, m) and
    ``others`` (S, other, batch, m) over m. Then all corrections, in float32, and the GELU or, on the way back, its
    derivative.
    """
    row = tl.arange(0, group)
    real = row < rank
    own = layer * rank + row  # of the trial's rows; offsets from here on fit 32 bits
    x += (trial * rows * batch + sample) * q
    states += (trial * rows * batch + sample) * q
    inner += (trial * rows * batch + sample) * q
    shift += trial * rows * q
    pairs += trial * rows * rows
    cross += (trial * rows * batch + sample) * other
    left += trial * rows * m
    others += (trial * other * batch + sample) * m
    spread += trial * other * q
    for first in range(other_first, other_last, lines):
        j = first + tl.arange(0, lines)
        total = tl.zeros((lines, group), dtype=tl.float32)
        for k in range(0, m, step):
            place = k + tl.arange(0, step)
            a = tl.load(
                others + (j[:, None] * (batch * m) + place[None, :]),
                mask=(j < other_last)[:, None] & (place < m)[None, :],
                other=0,
            )
            b = tl.load(left + (own[None, :] * m + place[:, None]), mask=real[None, :] & (place < m)[:, None], other=0)
            total = tl.dot(a, b, total, input_precision=precision)
        to = cross + (own[None, :] * (batch * other) + j[:, None])
        tl.store(to, total.to(dtype), mask=(j < other_last)[:, None] & real[None, :])
    tl.debug_barrier()  # other threads read what these have written
    for part in range(0, q, columns):
        column = part + tl.arange(0, columns)
        inside = real[:, None] & (column < q)[None, :]
        place = own[:, None] * (batch * q) + column[None, :]
        total = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        if not back:
            total += tl.load(shift + (own[:, None] * q + column[None, :]), mask=inside, other=0).to(tl.float32)
        for k in range(same_first, same_last, inner_step):
            j = k + tl.arange(0, inner_step)
            at = j[None, :] * rows + own[:, None] if back else own[:, None] * rows + j[None, :]
            a = tl.load(pairs + at, mask=real[:, None] & (j < same_last)[None, :], other=0)
            b = tl.load(
                states + (j[:, None] * (batch * q) + column[None, :]),
                mask=(j < same_last)[:, None] & (column < q)[None, :],
                other=0,
            )
            total = tl.dot(a, b, total, input_precision=precision)
        for k in range(other_first, other_last, inner_step):
            j = k + tl.arange(0, inner_step)
            a = tl.load(
                cross + (own[:, None] * (batch * other) + j[None, :]),
                mask=real[:, None] & (j < other_last)[None, :],
                other=0,
            )
            b = tl.load(
                spread + (j[:, None] * q + column[None, :]),
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
    tl.debug_barrier()


@triton.jit(do_not_specialize=["batch"])
def _follow(
    plan, x0, x1, states0, states1, inner0, inner1, shift0, shift1, pairs0, pairs1, cross0, cross1, left0, left1,
    spread0, spread1, batch, depth,
    rows0: tl.constexpr, rows1: tl.constexpr, rank: tl.constexpr, n: tl.constexpr, d: tl.constexpr,
    back: tl.constexpr, dtype: tl.constexpr, precision: tl.constexpr, group: tl.constexpr,
    lines: tl.constexpr, step: tl.constexpr, columns: tl.constexpr, inner_step: tl.constexpr,
):  # fmt: skip
    """Complete all layers for one sample and trial, in their order or, on the way back, in the opposite one."""
    sample = tl.program_id(0).to(tl.int64)
    trial = tl.program_id(1).to(tl.int64)
    for at in range(0, depth):
        i = at
        if back:
            i = depth - 1 - at
        token = tl.load(plan + i)
        channels_before, tokens_before = tl.load(plan + depth + i), tl.load(plan + 2 * depth + i)
        channel_first, channel_last = 0, channels_before * rank
        token_first, token_last = 0, tokens_before * rank
        if back:  # what comes later, and not the layer itself
            channel_first, channel_last = (channels_before + 1 - token) * rank, rows0
            token_first, token_last = (tokens_before + token) * rank, rows1
        if token == 0:
            _layer(
                x0, states0, inner0, shift0, pairs0, cross0, left0, states1, spread1, trial, sample, batch,
                channels_before, channel_first, channel_last, token_first, token_last,
                rows0, rows1, rank, n, d, back, dtype, precision, group, lines, step, columns, inner_step,
            )  # fmt: skip
        else:
            _layer(
                x1, states1, inner1, shift1, pairs1, cross1, left1, states0, spread0, trial, sample, batch,
                tokens_before, token_first, token_last, channel_first, channel_last,
                rows1, rows0, rank, d, n, back, dtype, precision, group, lines, step, columns, inner_step,
            )  # fmt: skip


def follow(
    chain: Chain,
    x: Pair,
    states: Pair,
    cross: Pair,
    w: Weights,
    tiles: Tiles,
    inner: Pair | None = None,
) -> None:
    """Complete the states of a chain.

    Args:
        chain: the plan.
        x: by kind products with the activations, ``(S, L * r, batch, q)``, which become the pre-activations; on the
            way back what the readout sends, which becomes the gradients of the pre-activations.
        states: by kind their GELU, to be filled, like x; on the way back x itself.
        cross: by kind what each layer sees of the other, ``(S, L, r, batch, L' * r)``, to be filled.
        w: the layers' matrices.
        tiles: sizes of the kernels' tiles.
        inner: the pre-activations, on the way back.
    """
    assert all(tensor.is_contiguous() for tensor in (*x, *states, *cross, *w.tensors())), "rows must lie in order"
    (trials, rows0, batch, n), (_, rows1, _, d) = (tensor.shape for tensor in x)
    back = inner is not None
    left, spread = (w.up, w.down) if back else (w.down, w.up)
    dtype = x[CHANNEL].dtype
    tile = tiles.follow if chain.rank <= LOW else tiles.follow_high
    _follow[(batch, trials)](
        _plan(chain.kinds, x[CHANNEL].device), *x, *states, *(inner or x), *w.shift, *w.pairs, *cross, *left, *spread,
        batch, len(chain.kinds),
        rows0=rows0, rows1=rows1, rank=chain.rank, n=n, d=d, back=back, dtype=TYPES[dtype],
        precision=precision_of(dtype), group=whole(chain.rank), **tile,
    )  # fmt: skip


@cache
def _plan(kinds: tuple[int, ...], device: torch.device) -> Tensor:
    """Put kinds, and how many of each come before, on the device once: int32 ``(3, depth)``."""
    before = [[kinds[:i].count(kind) for i in range(len(kinds))] for kind in (CHANNEL, TOKEN)]
    with torch.inference_mode(False):
        return torch.tensor([list(kinds), *before], dtype=torch.int32).to(device)
