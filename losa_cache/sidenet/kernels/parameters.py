"""Parameters of side layers to matrices, and gradients of matrices to those of parameters: a launch or two a kind.

The oracle, and the formulas, are :mod:`losa_cache.sidenet.packed`. Torch takes some hundred small operations for it,
which is as long as streaming a whole batch of block outputs.
"""

from dataclasses import replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.sidenet.chain import Chain, Pair, Weights
from losa_cache.sidenet.kernels.tiles import precision_of, whole
from losa_cache.sidenet.kernels.values import TYPES
from losa_cache.sidenet.packed import Gradients, Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN

PART = 128  # of an axis
SEEN = 32  # rows of other layers


@triton.jit
def _biases(up_bias, scale, first, last, place, m, inside, part: tl.constexpr):
    """Sum alpha times the output bias of layers ``first`` to ``last``, ``(part,)``: sixteen layers at a time.

    Here and below sums over an axis are taken behind a loop: Triton 3.6 cannot compile some that are in it.
    """
    total = tl.zeros((16, part), dtype=tl.float32)
    for start in range(first, last, 16):
        j = start + tl.arange(0, 16)
        alpha = tl.load(scale + j, mask=j < last, other=0)
        bias = tl.load(up_bias + j[:, None] * m + place[None, :], mask=(j < last)[:, None] & inside[None, :], other=0)
        total += alpha[:, None] * bias
    return tl.sum(total, 0)


@triton.jit
def _scaled_up(up, scale, j, place, m, stride_r, stride_m, known, inside, rank: tl.constexpr):
    """Load alpha W_u transposed of the rows j of a trial that are ``known``, at the places ``inside``; else zero."""
    layer = j // rank
    at = layer * (rank * m) + (j % rank) * stride_r + place * stride_m
    return tl.load(scale + layer, mask=known, other=0) * tl.load(up + at, mask=known & inside, other=0)


@triton.jit
def _pack(
    down, down_bias, up, up_bias, scale, other_bias, other_scale, before,
    down_out, up_out, pairs_out, shift_out, row_out, total_out, stride_r, stride_m,
    layers: tl.constexpr, others: tl.constexpr, rank: tl.constexpr, m: tl.constexpr, m_filled: tl.constexpr,
    q: tl.constexpr, q_filled: tl.constexpr, dtype: tl.constexpr, precision: tl.constexpr,
    group: tl.constexpr, part: tl.constexpr, seen: tl.constexpr,
):  # fmt: skip
    """Pack one layer of one trial; the program of the last layer also sums up all output biases."""
    layer, trial = tl.program_id(0), tl.program_id(1)
    rows: tl.constexpr = layers * rank
    down += trial * rows * m
    up += trial * rows * m
    up_bias += trial * layers * m
    scale += trial * layers
    other_bias += trial * others * q
    other_scale += trial * others
    row = tl.arange(0, group)
    real, own = row < rank, layer * rank + row
    lines = tl.zeros((group, part), dtype=tl.float32)
    constants = tl.zeros((group, part), dtype=tl.float32)
    for k in range(0, m_filled, part):
        place = k + tl.arange(0, part)
        inside = place < m
        there = real[:, None] & inside[None, :]
        w = tl.load(down + own[:, None] * m + place[None, :], mask=there, other=0)
        u = _scaled_up(
            up, scale, own[:, None], place[None, :], m, stride_r, stride_m, real[:, None], inside[None, :], rank
        )
        to = (trial * rows + own)[:, None] * m_filled + place[None, :]
        tl.store(down_out + to, w.to(dtype), mask=real[:, None] & (place < m_filled)[None, :])
        tl.store(up_out + to, u.to(dtype), mask=real[:, None] & (place < m_filled)[None, :])
        along = _biases(up_bias, scale, 0, layer, place, m, inside, part)
        lines += w
        constants += w * along[None, :]
        if layer == layers - 1:
            along += tl.load(scale + layer) * tl.load(up_bias + layer * m + place, mask=inside, other=0)
            tl.store(total_out + trial * m + place, along, mask=inside)
    line = tl.sum(lines, 1)
    constant = tl.load(down_bias + trial * rows + own, mask=real, other=0) + tl.sum(constants, 1)
    tl.store(row_out + trial * rows + own, line, mask=real)
    for first in range(0, layer * rank, seen):
        j = first + tl.arange(0, seen)
        known = j < layer * rank
        products = tl.zeros((group, seen), dtype=tl.float32)
        for k in range(0, m, part):
            place = k + tl.arange(0, part)
            inside = place < m
            w = tl.load(down + own[:, None] * m + place[None, :], mask=real[:, None] & inside[None, :], other=0)
            u = _scaled_up(
                up, scale, j[None, :], place[:, None], m, stride_r, stride_m, known[None, :], inside[:, None], rank
            )
            products = tl.dot(w, u, products, input_precision=precision)
        to = pairs_out + (trial * rows + own)[:, None] * rows + j[None, :]
        tl.store(to, products.to(dtype), mask=real[:, None] & known[None, :])
    earlier = tl.load(before + layer)
    for k in range(0, q_filled, part):
        place = k + tl.arange(0, part)
        across = _biases(other_bias, other_scale, 0, earlier, place, q, place < q, part)
        value = constant[:, None] + line[:, None] * across[None, :]
        to = shift_out + (trial * rows + own)[:, None] * q_filled + place[None, :]
        tl.store(to, value.to(dtype), mask=real[:, None] & (place < q_filled)[None, :])


@triton.jit
def _reduce(
    shift, other_bias, other_scale, before, constant_out, row_out,
    layers: tl.constexpr, others: tl.constexpr, rank: tl.constexpr, q: tl.constexpr, q_filled: tl.constexpr,
    group: tl.constexpr, part: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of a layer's shift: alone, and times the other kind's output biases before it."""
    layer, trial = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, group)
    real, own = row < rank, trial * layers * rank + layer * rank + row
    earlier = tl.load(before + layer)
    constants = tl.zeros((group, part), dtype=tl.float32)
    lines = tl.zeros((group, part), dtype=tl.float32)
    for k in range(0, q, part):
        place = k + tl.arange(0, part)
        inside = place < q
        g = tl.load(shift + own[:, None] * q_filled + place[None, :], mask=real[:, None] & inside[None, :], other=0)
        across = _biases(
            other_bias + trial * others * q, other_scale + trial * others, 0, earlier, place, q, inside, part
        )
        constants += g
        lines += g * across[None, :]
    tl.store(constant_out + own, tl.sum(constants, 1), mask=real)
    tl.store(row_out + own, tl.sum(lines, 1), mask=real)


@triton.jit
def _unpack(
    down, up, up_bias, scale, before, row, constant_grad, row_grad, pairs_grad, other_row, other_shift,
    down_grad, down_more, up_grad, up_more, total_grad, down_out, up_out, bias_out, scale_out, stride_r, stride_m,
    layers: tl.constexpr, others: tl.constexpr, rank: tl.constexpr, m: tl.constexpr, m_filled: tl.constexpr,
    precision: tl.constexpr, group: tl.constexpr, part: tl.constexpr, seen: tl.constexpr,
):  # fmt: skip
    """Unpack the gradients of a part of one layer of one trial; ``scale_out`` gets the part's share of alpha's."""
    at, layer, trial = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows: tl.constexpr = layers * rank
    other_rows: tl.constexpr = others * rank
    down += trial * rows * m
    up += trial * rows * m
    up_bias += trial * layers * m
    scale += trial * layers
    constant_grad += trial * rows
    row_grad += trial * rows
    pairs_grad += trial * rows * rows
    other_row += trial * other_rows
    other_shift += trial * other_rows * m_filled
    index = tl.arange(0, group)
    real, own = index < rank, layer * rank + index
    alpha = tl.load(scale + layer)
    place = at * part + tl.arange(0, part)
    inside = place < m
    there = real[:, None] & inside[None, :]
    wide = (trial * rows + own)[:, None] * m_filled + place[None, :]
    narrow = (trial * rows + own)[:, None] * m + place[None, :]
    g_down = tl.load(down_grad + wide, mask=there, other=0).to(tl.float32)
    g_down += tl.load(down_more + wide, mask=there, other=0).to(tl.float32)
    g_up = tl.load(up_grad + wide, mask=there, other=0).to(tl.float32)
    g_up += tl.load(up_more + wide, mask=there, other=0).to(tl.float32)
    for first in range(0, layer * rank, seen):
        j = first + tl.arange(0, seen)
        known = j < layer * rank
        p = tl.load(pairs_grad + own[:, None] * rows + j[None, :], mask=real[:, None] & known[None, :], other=0)
        u = _scaled_up(
            up, scale, j[:, None], place[None, :], m, stride_r, stride_m, known[:, None], inside[None, :], rank
        )
        g_down = tl.dot(p.to(tl.float32), u, g_down, input_precision=precision)
    along = _biases(up_bias, scale, 0, layer, place, m, inside, part)
    g_down += tl.load(constant_grad + own, mask=real, other=0)[:, None] * along[None, :]
    g_down += tl.load(row_grad + own, mask=real, other=0)[:, None]
    tl.store(down_out + narrow, g_down, mask=there)
    biases = tl.zeros((seen, part), dtype=tl.float32)
    for first in range((layer + 1) * rank, rows, seen):
        j = first + tl.arange(0, seen)
        known = j < rows
        p = tl.load(pairs_grad + j[None, :] * rows + own[:, None], mask=real[:, None] & known[None, :], other=0)
        w = tl.load(down + j[:, None] * m + place[None, :], mask=known[:, None] & inside[None, :], other=0)
        g_up = tl.dot(p.to(tl.float32), w, g_up, input_precision=precision)
        biases += tl.load(constant_grad + j, mask=known, other=0)[:, None] * w
    for first in range(tl.load(before + layer) * rank, other_rows, seen):
        j = first + tl.arange(0, seen)
        known = j < other_rows
        g = tl.load(
            other_shift + j[:, None] * m_filled + place[None, :], mask=known[:, None] & inside[None, :], other=0
        )
        biases += tl.load(other_row + j, mask=known, other=0)[:, None] * g
    g_bias = tl.load(total_grad + trial * m + place, mask=inside, other=0).to(tl.float32) + tl.sum(biases, 0)
    alpha = tl.load(scale + layer)
    raw = tl.load(up + layer * (rank * m) + index[:, None] * stride_r + place[None, :] * stride_m, mask=there, other=0)
    bias = tl.load(up_bias + layer * m + place, mask=inside, other=0)
    to = up_out + (trial * rows + layer * rank) * m + index[:, None] * stride_r + place[None, :] * stride_m
    tl.store(to, g_up * alpha, mask=there)
    tl.store(bias_out + (trial * layers + layer) * m + place, g_bias * alpha, mask=inside)
    share = tl.sum(tl.sum(tl.where(there, g_up * raw, 0.0), 1), 0) + tl.sum(tl.where(inside, g_bias * bias, 0.0), 0)
    tl.store(scale_out + (trial * layers + layer) * tl.num_programs(0) + at, share)


def pack(chain: Chain, layers: tuple[Packed, Packed], filled: int) -> tuple[Weights, tuple[Tensor, ...], Pair]:
    """Make the matrices of a chain, as :func:`losa_cache.sidenet.packed.pack` does.

    Args:
        chain: the plan.
        layers: parameters by kind, float32.
        filled: tokens that what lies along them is filled up to, with zeros.

    Returns:
        the matrices in the products' dtype; sums of rows of W_d by kind, for :func:`unpack`; and the sums of all
        output biases.
    """
    found: list[tuple[Tensor, ...]] = []
    layers = _in_order(layers)
    for kind, own in enumerate(layers):
        other = layers[1 - kind]
        trials, count, rank, m = own.down.shape
        q = other.down.shape[3]
        m_filled, q_filled = (filled if which == TOKEN else size for which, size in ((kind, m), (1 - kind, q)))
        rows = count * rank
        sizes = (m_filled, m_filled, rows, q_filled)
        down, up, pairs, shift = (own.down.new_empty(trials, rows, size, dtype=chain.dtype) for size in sizes)
        row, total = own.down.new_empty(trials, rows), own.down.new_zeros(trials, m)
        if count:
            _pack[(count, trials)](
                own.down, own.down_bias, own.up, own.up_bias, own.scale, other.up_bias, other.scale,
                _before(chain.kinds, kind, own.down.device), down, up, pairs, shift, row, total, *own.up.stride()[2:],
                layers=count, others=other.down.shape[1], rank=rank, m=m, m_filled=m_filled, q=q, q_filled=q_filled,
                dtype=TYPES[chain.dtype], precision=precision_of(chain.dtype), group=whole(rank), part=PART,
                seen=SEEN, num_warps=_warps(rank),
            )  # fmt: skip
        found.append((down, up, pairs, shift, row, total))
    (*channel, channel_row, channel_total), (*token, token_row, token_total) = found
    weights = Weights(*zip(channel, token, strict=True))
    return weights, (channel_row, token_row), (channel_total, token_total)


def unpack(
    chain: Chain, layers: tuple[Packed, Packed], rows: tuple[Tensor, ...], gradients: Gradients
) -> tuple[Packed, Packed]:
    """Give the gradients of the parameters, as :func:`losa_cache.sidenet.packed.unpack` does.

    Args:
        chain, layers: as of :func:`pack`.
        rows: sums of rows of W_d, as it returned them.
        gradients: of the matrices.
    """
    layers, gradients = _in_order(layers), gradients.contiguous()
    before = [_before(chain.kinds, kind, rows[0].device) for kind in (CHANNEL, TOKEN)]
    constants, lines = ([torch.empty_like(row) for row in rows] for _ in range(2))
    for kind, own in enumerate(layers):
        trials, count, rank, _ = own.down.shape
        other, shift = layers[1 - kind], gradients.shift[kind]
        if count:
            _reduce[(count, trials)](
                shift, other.up_bias, other.scale, before[kind], constants[kind], lines[kind],
                layers=count, others=other.down.shape[1], rank=rank, q=other.down.shape[3], q_filled=shift.shape[2],
                group=whole(rank), part=PART, num_warps=_warps(rank),
            )  # fmt: skip
    found = []
    for kind, own in enumerate(layers):
        trials, count, rank, m = own.down.shape
        down, up, bias = (torch.empty_like(tensor) for tensor in (own.down, own.up, own.up_bias))
        parts = triton.cdiv(m, PART)
        scale = own.scale.new_empty(trials, count, parts)
        if count:
            _unpack[(parts, count, trials)](
                own.down, own.up, own.up_bias, own.scale, before[kind], rows[kind], constants[kind], lines[kind],
                gradients.pairs[kind], rows[1 - kind], gradients.shift[1 - kind],
                gradients.down[kind], gradients.down_cross[kind], gradients.up[kind], gradients.up_cross[kind],
                gradients.total[kind], down, up, bias, scale, *own.up.stride()[2:],
                layers=count, others=layers[1 - kind].down.shape[1], rank=rank, m=m,
                m_filled=gradients.down[kind].shape[2], precision=precision_of(chain.dtype), group=whole(rank),
                part=PART, seen=SEEN, num_warps=_warps(rank),
            )  # fmt: skip
        found.append(Packed(down, constants[kind].view_as(own.down_bias), up, bias, scale.sum(2)))
    return found[CHANNEL], found[TOKEN]


def _warps(rank: int) -> int:
    return 4 if rank <= 32 else 8


def _in_order(layers: tuple[Packed, Packed]) -> tuple[Packed, Packed]:
    """Lay parameters out in order, which those of a part of the layers of several trials are not.

    The last two axes of W_u may stay exchanged, as the layers of one network have them.
    """
    channel, token = (
        replace(
            own,
            down=own.down.contiguous(),
            down_bias=own.down_bias.contiguous(),
            up=own.up if own.up.mT.is_contiguous() else own.up.contiguous(),
            up_bias=own.up_bias.contiguous(),
            scale=own.scale.contiguous(),
        )
        for own in layers
    )
    return channel, token


@cache
def _before(kinds: tuple[int, ...], kind: int, device: torch.device) -> Tensor:
    """Count the layers of the other kind before each layer of a kind, int32 ``(L,)``."""
    counts = [kinds[:i].count(1 - kind) for i, this in enumerate(kinds) if this == kind]
    with torch.inference_mode(False):
        return torch.tensor(counts, dtype=torch.int32).to(device)
