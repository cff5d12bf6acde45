"""A side network as chains of layers, between which y is materialised. The length of the chains is chosen by cost.

The corrections of the fast form grow with the square of layers times rank. A materialised y costs passes over n x d
tensors. Up to a dozen layers of rank 16 nothing is materialised; 40 layers of rank 64 pay for a few times.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from losa_cache.sidenet.backend import choose_backend
from losa_cache.sidenet.chain import Chain
from losa_cache.sidenet.fast import refine
from losa_cache.sidenet.operand import Block, Projected, split_start
from losa_cache.sidenet.packed import Packed
from losa_cache.sidenet.products import CHANNEL, FEW_ROWS, TOKEN, compute_dtype
from losa_cache.sidenet.readout import Readout, Whole

BALANCE = 40  # multiply-adds of small products in the time that a byte takes: measured on two AMX cores
DENSE_BYTES = 40  # moved for each value of y that is materialised: forward in float32, its gradient, casts


def run_segments(
    kinds: Sequence[int],
    packed: tuple[Packed, Packed],
    blocks: Sequence[Block],
    readout: Readout,
    *,
    length: int,
) -> Tensor:
    """Read y_k, ``(S, batch, m, d)``, after side layers in their fast form.

    Args:
        kinds: of each layer, ``CHANNEL`` or ``TOKEN``.
        packed: the layers' parameters by kind, each in its order.
        blocks: the layers' inputs, ``(batch, n, d)``; the last is y_0, or y_0 stands behind them.
        readout: what is read.
        length: of a chain, in layers; y is materialised after each.
    """
    inputs, start = split_start(blocks, len(kinds))
    trials, _, rank, _ = packed[CHANNEL].down.shape
    dtype = compute_dtype(start, packed[CHANNEL].down)
    y = start[None]
    with torch.autocast(start.device.type, enabled=False):
        for first in range(0, len(kinds), length):
            last = min(first + length, len(kinds))
            before, after = (Counter(kinds[:at]) for at in (first, last))
            channel, token = (packed[kind].part(before[kind], after[kind]) for kind in (CHANNEL, TOKEN))
            here = inputs[first:last]
            gone = any(isinstance(block, Projected) for block in here)  # y_0 was not there when they were
            added = len(y) == 1 and trials * rank > FEW_ROWS and not gone
            chain = Chain(tuple(kinds[first:last]), rank, readout if last == len(kinds) else Whole(), dtype, added)
            y = refine(choose_backend(chain, (channel, token), here, y), chain, (channel, token), here, y)
    return y


def segment_length(kinds: Sequence[int], *, rank: int, tokens: int, width: int) -> int:
    """Choose the number of layers of a segment with the least cost of a training step.

    Args:
        kinds: of each layer, ``CHANNEL`` or ``TOKEN``.
        rank, tokens, width: r, n and d.

    Returns:
        1 ... k; k is never materialising.
    """
    return min(
        range(len(kinds), 0, -1),
        key=lambda length: sum(
            cost(kinds[at : at + length], rank=rank, tokens=tokens, width=width, last=at + length >= len(kinds))
            for at in range(0, len(kinds), length)
        ),
    )


def cost(kinds: Sequence[int], *, rank: int, tokens: int, width: int, last: bool) -> float:
    """Count what a segment costs beside its products with b_i, in bytes moved, for a sample's training step."""
    c, t = list(kinds).count(CHANNEL), list(kinds).count(TOKEN)
    corrections = rank**2 * (c * c * tokens / 2 + t * t * width / 2 + c * t * (tokens + width))
    # on the way back each product has two: for the states and for the matrices, whose zero half is computed, too
    multiplied = 4 * corrections
    dense = 0 if last else DENSE_BYTES * tokens * width
    # products of a materialised y with all matrices: y and its gradient, there and back
    multiplied += (0 if last else 6) * rank * len(kinds) * tokens * width
    return multiplied / BALANCE + dense
