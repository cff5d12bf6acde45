"""A chain of side layers by Triton kernels: every b_i is read once on the way forth and once on the way back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from losa_cache.sidenet.chain import Chain, Pair, Weights
from losa_cache.sidenet.fast import no_cross
from losa_cache.sidenet.kernels import parameters
from losa_cache.sidenet.kernels.states import follow
from losa_cache.sidenet.kernels.stream import correlate, project
from losa_cache.sidenet.kernels.tiles import Tiles, tiles_for
from losa_cache.sidenet.kernels.values import TYPES, readable
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.packed import Gradients, Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN
from losa_cache.sidenet.readout import Whole

WORD = 8  # values of half precision that a thread reads at once
COUNTABLE = 2**31  # states of a kind, of one trial: their offsets are 32-bit numbers


class TritonBackend:
    """The chain by kernels (:class:`losa_cache.sidenet.fast.Backend`).

    First all products with activations are taken, which do not depend on one another; then the states go from layer
    to layer, alone. On the way back it is the other way round.
    """

    keeps_states = True

    def filled(self, chain: Chain, tokens: int) -> int:
        """Fill up to whole words, unless all of y_k is asked for, which has n tokens."""
        return tokens if isinstance(chain.readout, Whole) else -(-tokens // WORD) * WORD

    def pack(
        self, chain: Chain, layers: tuple[Packed, Packed], filled: int
    ) -> tuple[Weights, tuple[Tensor, ...], Pair]:
        """Pack by a launch a kind."""
        return parameters.pack(chain, layers, filled)

    def unpack(
        self, chain: Chain, layers: tuple[Packed, Packed], kept: tuple[Tensor, ...], gradients: Gradients
    ) -> tuple[Packed, Packed]:
        """Unpack by two launches a kind."""
        return parameters.unpack(chain, layers, kept, gradients)

    def takes(self, chain: Chain, blocks: Sequence[Block], start: Tensor) -> bool:
        """Tell whether the kernels can read these as they lie in memory, and count what they make of them."""
        _, batch, n, d = start.shape
        rows = max(map(chain.kinds.count, (CHANNEL, TOKEN))) * chain.rank
        countable = rows * batch * max(n + WORD, d, rows) < COUNTABLE
        computed = chain.dtype in TYPES
        return len(start) == 1 and computed and countable and readable(start[0]) and all(map(readable, blocks))

    def forward(
        self, chain: Chain, blocks: Sequence[Block], start: Tensor, w: Weights
    ) -> tuple[Pair, Pair, Pair, Tensor]:
        """Take all products with activations, then go from layer to layer."""
        channel, token = _by_kind(chain, blocks)
        tiles = _tiles(chain, w)
        inner = (
            project(CHANNEL, channel, start[0], w.down[CHANNEL], w.down[TOKEN].shape[2], tiles),
            project(TOKEN, token, start[0], w.down[TOKEN], w.down[TOKEN].shape[2], tiles),
        )
        states = (torch.empty_like(inner[CHANNEL]), torch.empty_like(inner[TOKEN]))
        cross = no_cross(chain, states)
        follow(chain, inner, states, cross, w, tiles)
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
        back, tiles = no_cross(chain, inner), _tiles(chain, w)
        follow(chain, grads, grads, back, w, tiles, inner)
        channel, token = _by_kind(chain, blocks)
        down = (
            correlate(CHANNEL, channel, base[0], grads[CHANNEL], grads[CHANNEL].shape[3], tiles),
            correlate(TOKEN, token, base[0], grads[TOKEN], grads[CHANNEL].shape[3], tiles),
        )
        return down, back


def _tiles(chain: Chain, w: Weights) -> Tiles:
    return tiles_for(len(w.down[CHANNEL]) * chain.rank)


def _by_kind(chain: Chain, blocks: Sequence[Block]) -> tuple[list[Block], list[Block]]:
    found: tuple[list[Block], list[Block]] = ([], [])
    for kind, block in zip(chain.kinds, blocks, strict=True):
        found[kind].append(block)
    return found
