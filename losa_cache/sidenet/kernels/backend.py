"""A chain of side layers by Triton kernels: every b_i is read once on the way forth and once on the way back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losa_cache.sidenet.chain import Chain, Pair, Weights
from losa_cache.sidenet.fast import no_cross
from losa_cache.sidenet.kernels.states import advance_layer, cross_layer
from losa_cache.sidenet.kernels.stream import correlate, project
from losa_cache.sidenet.kernels.tiles import TILES, Tiles
from losa_cache.sidenet.kernels.values import readable
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.products import CHANNEL, TOKEN


@dataclass(frozen=True)
class TritonBackend:
    """The chain by kernels (:class:`losa_cache.sidenet.fast.Backend`).

    First all products with activations are taken, which do not depend on one another; then the states go from layer
    to layer, alone. On the way back it is the other way round.

    Attributes:
        tiles: sizes of the kernels' tiles.
    """

    tiles: Tiles = TILES

    @staticmethod
    def reads(blocks: Sequence[Block], start: Tensor) -> bool:
        """Tell whether the kernels can read these as they lie in memory."""
        return len(start) == 1 and readable(start[0]) and all(map(readable, blocks))

    def forward(
        self, chain: Chain, blocks: Sequence[Block], start: Tensor, w: Weights
    ) -> tuple[Pair, Pair, Pair, Tensor]:
        """Take all products with activations, then go from layer to layer."""
        channel, token = _by_kind(chain, blocks)
        inner = (
            project(CHANNEL, channel, start[0], w.down[CHANNEL], self.tiles),
            project(TOKEN, token, start[0], w.down[TOKEN], self.tiles),
        )
        states = (torch.empty_like(inner[CHANNEL]), torch.empty_like(inner[TOKEN]))
        cross, r = no_cross(chain, states), chain.rank
        for kind, before in chain.steps():
            same, other = range(before[kind] * r), range(before[1 - kind] * r)
            cross_layer(w.down[kind], states[1 - kind], cross[kind], before[kind], other, self.tiles)
            advance_layer(
                inner[kind], states[kind], w.pairs[kind], cross[kind], w.up[1 - kind],
                layer=before[kind], same=same, other=other, shift=w.shift[kind], tiles=self.tiles,
            )  # fmt: skip
        return inner, states, cross, start

    def backward(
        self,
        chain: Chain,
        blocks: Sequence[Block],
        base: Tensor,
        inner: Pair,
        grads: Pair,
        w: Weights,
    ) -> tuple[Pair, Pair]:
        """Go back from layer to layer, then take all products with activations."""
        back, r = no_cross(chain, inner), chain.rank
        totals = [x.shape[1] for x in grads]
        for kind, before in reversed(chain.steps()):
            same = range((before[kind] + 1) * r, totals[kind])
            other = range(before[1 - kind] * r, totals[1 - kind])
            cross_layer(w.up[kind], grads[1 - kind], back[kind], before[kind], other, self.tiles)
            advance_layer(
                grads[kind], grads[kind], w.pairs[kind], back[kind], w.down[1 - kind],
                layer=before[kind], same=same, other=other, inner=inner[kind], tiles=self.tiles,
            )  # fmt: skip
        channel, token = _by_kind(chain, blocks)
        down = (
            correlate(CHANNEL, channel, base[0], grads[CHANNEL], self.tiles),
            correlate(TOKEN, token, base[0], grads[TOKEN], self.tiles),
        )
        return down, back


def _by_kind(chain: Chain, blocks: Sequence[Block]) -> tuple[list[Block], list[Block]]:
    found: tuple[list[Block], list[Block]] = ([], [])
    for kind, block in zip(chain.kinds, blocks, strict=True):
        found[kind].append(block)
    return found
