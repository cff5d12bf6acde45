"""How many side layers to chain before y is materialised: a choice by cost.

The corrections of the fast form grow with the square of layers times rank, a materialised y costs passes over n x d
tensors. Up to a dozen layers of rank 16 nothing is materialised; 40 layers of rank 64 pay for a few times.
"""

from collections.abc import Sequence

from losa_cache.sidenet.products import CHANNEL, TOKEN

BALANCE = 40  # multiply-adds of small products in the time that a byte takes: measured on two AMX cores
DENSE_BYTES = 40  # moved for each value of y that is materialised: forward in float32, its gradient, casts


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
