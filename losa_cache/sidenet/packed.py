"""Parameters of side layers, packed into the matrices of the fast form. Nothing here is as large as a batch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from losa_cache.sidenet.backend import choose_backend
from losa_cache.sidenet.fast import Chain, Weights, refine
from losa_cache.sidenet.operand import Block, split_start
from losa_cache.sidenet.products import CHANNEL, FEW_ROWS, TOKEN, compute_dtype
from losa_cache.sidenet.readout import Readout, Whole


@dataclass(frozen=True)
class Packed:
    """The layers of one kind, of S trials: L layers that mix an axis of length m, rank r.

    Attributes:
        down: W_d, ``(S, L, r, m)``.
        down_bias: ``(S, L, r)``.
        up: alpha W_u transposed, ``(S, L, r, m)``.
        up_bias: alpha times the bias, ``(S, L, m)``.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def part(self, first: int, last: int) -> "Packed":
        """Take some of the layers."""
        return Packed(*(tensor[:, first:last] for tensor in vars(self).values()))

    def biases_before(self, counts: Sequence[int]) -> Tensor:
        """Sum the output biases of the first so many layers, for each count: ``(S, counts, m)``."""
        return functional.pad(self.up_bias.cumsum(1), (0, 0, 1, 0))[:, list(counts)]


def run_segments(
    kinds: Sequence[int],
    packed: tuple[Packed, Packed],
    blocks: Sequence[Block],
    readout: Readout,
    *,
    length: int,
) -> Tensor:
    """Read y_k as :func:`run_chain` does, from y_0 among the blocks, materialising y after every ``length`` layers."""
    inputs, start = split_start(blocks, len(kinds))
    dtype = compute_dtype(start, packed[CHANNEL].down)
    y = start[None]
    with torch.autocast(start.device.type, enabled=False):
        for first in range(0, len(kinds), length):
            last = min(first + length, len(kinds))
            before, after = (Counter(kinds[:at]) for at in (first, last))
            y = run_chain(
                kinds[first:last],
                (
                    packed[CHANNEL].part(before[CHANNEL], after[CHANNEL]),
                    packed[TOKEN].part(before[TOKEN], after[TOKEN]),
                ),
                inputs[first:last],
                y,
                readout if last == len(kinds) else Whole(),
                dtype,
            )
    return y


def run_chain(
    kinds: Sequence[int],
    packed: tuple[Packed, Packed],
    blocks: Sequence[Block],
    start: Tensor,
    readout: Readout,
    dtype: torch.dtype,
) -> Tensor:
    """Read y_k, ``(S, batch, m, d)``, after a chain of side layers in their fast form.

    Args:
        kinds: of each layer, ``CHANNEL`` or ``TOKEN``.
        packed: the layers' parameters by kind, each in its order.
        blocks: the layers' inputs, ``(batch, n, d)``.
        start: y_0, ``(S or 1, batch, n, d)``.
        readout: what is read.
        dtype: that products are computed in.
    """
    channel, token = packed
    trials, _, rank, _ = channel.down.shape
    added = len(start) == 1 and trials * rank > FEW_ROWS
    chain = Chain(tuple(kinds), rank, readout, dtype, added)

    def shift(kind: int) -> Tensor:
        """E or F: what the own bias and those of earlier layers, of either kind, add to a pre-activation."""
        own, other = (channel, token) if kind == CHANNEL else (token, channel)
        places = [i for i, this in enumerate(chain.kinds) if this == kind]
        along = own.biases_before(range(len(places)))
        across = other.biases_before([i - at for at, i in enumerate(places)])
        constant = own.down_bias + torch.einsum("slrm,slm->slr", own.down, along)
        return (constant[..., None] + own.down.sum(-1, keepdim=True) * across[:, :, None]).flatten(1, 2)

    weights = Weights(
        (channel.down.flatten(1, 2), token.down.flatten(1, 2)),
        (channel.up.flatten(1, 2), token.up.flatten(1, 2)),
        (_pairs(channel), _pairs(token)),
        (shift(CHANNEL), shift(TOKEN)),
    )
    total = readout.select(token.up_bias.sum(1))[..., None] + channel.up_bias.sum(1)[:, None]
    return refine(choose_backend(chain, weights, blocks, start), chain, weights, blocks, start, total)


def _pairs(own: Packed) -> Tensor:
    """What each layer sees of the updates of earlier layers of its kind, ``(S, L * r, L * r)``; zero for j >= i."""
    layers, rank = own.down.shape[1:3]
    earlier = own.down.new_ones(layers, layers).tril(-1)
    return (
        own.down.flatten(1, 2) @ own.up.flatten(1, 2).mT * earlier.repeat_interleave(rank, 0).repeat_interleave(rank, 1)
    )
