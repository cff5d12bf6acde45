"""LoSA without a single n x d tensor: the exact fast form of Eq. 3-5, forward and backward.

y is never built. Every update has low rank, so y is kept as y_0 plus a sum of products,

    channel layer j:  y += H_j' U_j        H_j = GELU(P_j), (r, n) a sample       U_j = alpha_j W_u,j transposed, (r, d)
    token layer j:    y += V_j' K_j        K_j = GELU(Q_j), (r, d) a sample       V_j = alpha_j W_u,j transposed, (r, n)

(and biases, which are the same for every sample). What a layer sees of it is a product with its own W_d,

    channel layer i:  P_i = W_i (b_i + y_0)' + sum_j (W_i U_j') H_j + sum_j (W_i K_j') V_j + E_i
    token layer i:    Q_i = W_i (b_i + y_0)  + sum_j (W_i V_j') K_j + sum_j (W_i H_j') U_j + F_i

with E and F from biases alone. The first sum is over layers of the same kind, and its matrices are the same for every
sample ("pairs"); the second is over layers of the other kind, with one small r x r matrix a sample ("cross"). The
gradient of y is a sum of the very same kind, with dP, dQ for H, K and W for U, V, so the way back mirrors the way
forth. Kept for it are P, Q and the cross matrices: about r / d of what the plain form keeps.

Layout: states are rank first, ``(trials, layers * rank, batch, n or d)``, so that the states of all earlier layers are
one matrix without a copy, and every product is one large GEMM. ``trials`` are networks of one shape trained side by
side (:mod:`losa_cache.sidenet.stack`); one network is a stack of one. What comes in twos is indexed by kind.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losa_cache.sidenet.chain import Chain, Pair, Weights
from losa_cache.sidenet.operand import Block, Operand, operand
from losa_cache.sidenet.packed import Gradients, Packed, Sums, pack, unpack
from losa_cache.sidenet.products import CHANNEL, TOKEN, correlate, project, update, wide


class Backend(Protocol):
    """How a chain is computed: by torch's products, or by kernels of our own.

    Attributes:
        keeps_states: whether the GELUs of pre-activations are kept for the way back rather than made again.
    """

    keeps_states: bool

    def filled(self, chain: Chain, tokens: int) -> int:
        """Say to how many tokens states are filled up, so that rows of them begin at whole words of memory."""
        ...

    def pack(
        self, chain: Chain, layers: tuple[Packed, Packed], filled: int
    ) -> tuple[Weights, tuple[Tensor, ...], Pair]:
        """Make the matrices of a chain from its parameters (:func:`losa_cache.sidenet.packed.pack`).

        Args:
            chain: the plan.
            layers: parameters by kind.
            filled: as of :meth:`filled`.

        Returns:
            the matrices, in ``chain.dtype``; what :meth:`unpack` needs of the way there; and what all output biases add
            to y_k, ``(S, d)`` to every token and ``(S, n)`` to every channel.
        """
        ...

    def unpack(
        self, chain: Chain, layers: tuple[Packed, Packed], kept: tuple[Tensor, ...], gradients: Gradients
    ) -> tuple[Packed, Packed]:
        """Give the gradients of the parameters (:func:`losa_cache.sidenet.packed.unpack`)."""
        ...

    def forward(
        self, chain: Chain, blocks: Sequence[Block], start: Tensor, w: Weights
    ) -> tuple[Pair, Pair, Pair, Tensor]:
        """Compute all states.

        Args:
            chain: the plan.
            blocks: b_i of every layer.
            start: y_0, ``(S or 1, batch, n, d)``.
            w: the layers' matrices, in ``chain.dtype``.

        Returns:
            by kind pre-activations and their GELU, ``(S, L * r, batch, n or d)``; by kind what each layer sees of the
            states of the other kind, ``(S, L, r, batch, L' * r)``; and what :meth:`backward` needs of y_0.
        """
        ...

    def backward(
        self,
        chain: Chain,
        blocks: Sequence[Block],
        base: Tensor,
        inner: Pair,
        grads: Pair,
        w: Weights,
    ) -> tuple[Pair, Pair]:
        """Turn, in place, the gradients that the readout sends to the states into those of all pre-activations.

        Args:
            chain, blocks, w: as of :meth:`forward`.
            base: what it returned last.
            inner: pre-activations.
            grads: by kind ``(S, L * r, batch, n or d)``.

        Returns:
            by kind the gradient of W_d so far as it comes from b_i + y_0, ``(S, L * r, m)``; and the small matrices of
            the way back, as those of the way forth.
        """
        ...


def refine(
    backend: Backend, chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor
) -> Tensor:
    """Read y_k after a chain of side layers.

    Args:
        backend: that computes.
        chain: the plan.
        layers: their parameters by kind, each in its order.
        blocks: their inputs b_i.
        start: y_0, ``(S or 1, batch, n, d)``.

    Returns:
        ``(S, batch, m, d)``, m being the rows that are read.
    """
    return _Refine.apply(backend, chain, list(blocks), start, *layers[CHANNEL].tensors(), *layers[TOKEN].tensors())


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: Backend, chain: Chain, blocks: list[Block], start: Tensor, *parameters: Tensor
    ) -> Tensor:
        filled = backend.filled(chain, start.shape[2])
        w, kept, total = backend.pack(chain, _layers(parameters), filled)
        shift = chain.readout.select(total[TOKEN])[..., None] + total[CHANNEL][:, None]
        chain = replace(chain, readout=chain.readout.filled(filled))
        inner, states, cross, base = backend.forward(chain, blocks, start, w)
        ctx.backend, ctx.chain, ctx.blocks, ctx.kept = backend, chain, blocks, len(kept)
        again = states if backend.keeps_states else ()
        ctx.save_for_backward(base, *inner, *cross, *w.tensors(), *parameters, *kept, *again)
        return chain.readout.read(start, states, w.up, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _backward(ctx, gradients[0])


def _layers(parameters: Sequence[Tensor]) -> tuple[Packed, Packed]:
    half = len(parameters) // 2
    return Packed(*parameters[:half]), Packed(*parameters[half:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    chain: Chain = ctx.chain
    readout = chain.readout
    base, *saved = ctx.saved_tensors
    inner, cross, w, parameters = saved[:2], saved[2:4], Weights.of(saved[4:12]), saved[12:22]
    kept, again = saved[22 : 22 + ctx.kept], saved[22 + ctx.kept :]
    tokens, g = base.shape[2], gradient.to(chain.dtype)
    states = tuple(again) or tuple(map(torch.ops.aten.gelu, inner))
    grads = (readout.pull(CHANNEL, g, w.up[CHANNEL]), readout.pull(TOKEN, g, w.up[TOKEN]))
    down, back = ctx.backend.backward(chain, ctx.blocks, base, inner, grads, w)
    rows = gradient.sum(1)
    gradients = Gradients(
        down,
        (_through_cross(back[TOKEN], states[TOKEN]), _through_cross(back[CHANNEL], states[CHANNEL])),
        readout.correlate(g, states),
        (_through_cross(cross[TOKEN], grads[TOKEN]), _through_cross(cross[CHANNEL], grads[CHANNEL])),
        (_sum_products(grads[CHANNEL], states[CHANNEL]), _sum_products(grads[TOKEN], states[TOKEN])),
        (grads[CHANNEL].sum(2, dtype=wide(g)), grads[TOKEN].sum(2, dtype=wide(g))),
        (rows.sum(1), readout.spread(rows.sum(2))[:, :tokens].contiguous()),
    )
    unpacked = ctx.backend.unpack(chain, _layers(parameters), tuple(kept), gradients)
    d_start = None
    if ctx.needs_input_grad[3]:
        d_start = (readout.pull_start(gradient) + update(grads, w.down))[:, :, :tokens]
    return None, None, None, d_start, *unpacked[CHANNEL].tensors(), *unpacked[TOKEN].tensors()


def _sum_products(x: Tensor, y: Tensor) -> Tensor:
    """Sum over samples and the last axis: x ``(S, R, batch, q)`` times y, ``(S, R, R)``."""
    return torch.bmm(x.flatten(2), y.flatten(2).mT)


class TorchBackend:
    """The chain by torch's products, on any device."""

    keeps_states = False

    def filled(self, chain: Chain, tokens: int) -> int:
        """Fill up nothing."""
        return tokens

    def pack(
        self, chain: Chain, layers: tuple[Packed, Packed], filled: int
    ) -> tuple[Weights, tuple[Tensor, ...], Pair]:
        """Pack by torch's operations."""
        weights, sums, total = pack(chain, layers)
        return weights.to(chain.dtype), sums.tensors(), total

    def unpack(
        self, chain: Chain, layers: tuple[Packed, Packed], kept: tuple[Tensor, ...], gradients: Gradients
    ) -> tuple[Packed, Packed]:
        """Unpack by torch's operations."""
        return unpack(chain, layers, Sums.of(kept), gradients)

    def forward(
        self, chain: Chain, blocks: Sequence[Block], start: Tensor, w: Weights
    ) -> tuple[Pair, Pair, Pair, Tensor]:
        """Go from layer to layer, each of which says at once what later ones see of it."""
        inner = _first(chain, start, w)
        states = (torch.empty_like(inner[CHANNEL]), torch.empty_like(inner[TOKEN]))
        cross, r = no_cross(chain, states), chain.rank
        for (kind, before), block in zip(chain.steps(), self._operands(chain, blocks, start), strict=True):
            own, seen = _own(chain, kind, before), [count * r for count in before]
            x = inner[kind][:, own]
            block.add_product(kind, x, w.down[kind][:, own])
            _add_pairs(x, w.pairs[kind][:, own, : seen[kind]], states[kind][:, : seen[kind]])
            _add_cross(x, cross[kind][:, before[kind], ..., : seen[1 - kind]], w.up[1 - kind][:, : seen[1 - kind]])
            torch.ops.aten.gelu.out(x, out=states[kind][:, own])
            later = slice(before[1 - kind], None)
            _push(states[kind][:, own], w.down[1 - kind][:, later.start * r :], cross[1 - kind][:, later, ..., own])
        return inner, states, cross, start if chain.added else start.to(chain.dtype)

    def backward(
        self,
        chain: Chain,
        blocks: Sequence[Block],
        base: Tensor,
        inner: Pair,
        grads: Pair,
        w: Weights,
    ) -> tuple[Pair, Pair]:
        """Go back from layer to layer."""
        back, r = no_cross(chain, inner), chain.rank
        down = (_zeros_like(w.down[CHANNEL]), _zeros_like(w.down[TOKEN]))
        operands = self._operands(chain, blocks, base)
        for (kind, before), block in reversed(list(zip(chain.steps(), operands, strict=True))):
            own = _own(chain, kind, before)
            seen = [before[0] * r, before[1] * r]
            seen[kind] += r
            x = grads[kind][:, own]
            _add_pairs(x, w.pairs[kind][:, seen[kind] :, own].mT, grads[kind][:, seen[kind] :])
            _add_cross(x, back[kind][:, before[kind], ..., seen[1 - kind] :], w.down[1 - kind][:, seen[1 - kind] :])
            torch.ops.aten.gelu_backward.grad_input(x, inner[kind][:, own], grad_input=x)
            _push(x, w.up[1 - kind][:, : seen[1 - kind]], back[1 - kind][:, : before[1 - kind], ..., own])
            down[kind][:, own] = block.correlate(kind, x)
        if not chain.added:
            for kind in (CHANNEL, TOKEN):
                down[kind].add_(correlate(kind, base, grads[kind]))
        return down, back

    @staticmethod
    def _operands(chain: Chain, blocks: Sequence[Block], start: Tensor) -> list[Operand]:
        return [operand(block, chain.dtype, start[0] if chain.added else None) for block in blocks]


def _zeros_like(weight: Tensor) -> Tensor:
    """Begin a gradient, in float32 or wider."""
    return torch.zeros_like(weight, dtype=wide(weight))


def _own(chain: Chain, kind: int, before: tuple[int, int]) -> slice:
    """Rows of a layer among the states of its kind."""
    return slice(before[kind] * chain.rank, (before[kind] + 1) * chain.rank)


def _first(chain: Chain, start: Tensor, w: Weights) -> Pair:
    """Begin all pre-activations with what y_0 and the biases make of them."""
    _, batch, n, d = start.shape
    shapes = ((*w.down[CHANNEL].shape[:2], batch, n), (*w.down[TOKEN].shape[:2], batch, d))
    channel, token = (torch.empty(shape, dtype=chain.dtype, device=start.device) for shape in shapes)
    for kind, inner in ((CHANNEL, channel), (TOKEN, token)):
        shift = w.shift[kind][:, :, None]
        if chain.added:
            inner.copy_(shift)
        else:
            torch.add(project(kind, start.to(chain.dtype), w.down[kind]), shift, out=inner)
    return channel, token


def no_cross(chain: Chain, states: Sequence[Tensor]) -> Pair:
    """Make room for what each layer sees of states of the other kind: ``(S, L, r, batch, L' * r)``, zero at first."""
    (trials, c, batch, _), t, r = states[CHANNEL].shape, states[TOKEN].shape[1], chain.rank
    return states[0].new_zeros(trials, c // r, r, batch, t), states[0].new_zeros(trials, t // r, r, batch, c)


def _add_pairs(x: Tensor, pairs: Tensor, states: Tensor) -> None:
    """Add to x ``(S, r, batch, q)``: pairs ``(S, r, J)`` states ``(S, J, batch, q)``."""
    if states.shape[1]:
        _add_product(x.flatten(2), pairs, states.flatten(2))


def _add_cross(x: Tensor, cross: Tensor, spread: Tensor) -> None:
    """Add to x ``(S, r, batch, q)``: cross ``(S, r, batch, J)`` spread ``(S, J, q)``."""
    if spread.shape[1]:
        _add_product(x.flatten(1, 2), cross.flatten(1, 2), spread)


def _add_product(x: Tensor, a: Tensor, b: Tensor) -> None:
    """Add to x ``(S, m, n)``: a ``(S, m, k)`` b ``(S, k, n)``."""
    if len(x) == 1:
        x[0].addmm_(a[0], b[0])  # for a batch of one baddbmm is a loop without vector instructions
    else:
        x.baddbmm_(a, b)


def _push(states: Tensor, weight: Tensor, cross: Tensor) -> None:
    """Say what layers of the other kind see of states: ``(S, r, batch, p)`` by weight ``(S, J * r, p)``.

    ``cross``, ``(S, J, r, batch, r)``, is filled.
    """
    if weight.shape[1]:
        trials, layers, r, batch, own = cross.shape
        found = torch.bmm(states.flatten(1, 2), weight.mT).view(trials, own, batch, layers, r)
        cross.copy_(found.permute(0, 3, 4, 2, 1))


def _through_cross(cross: Tensor, x: Tensor) -> Tensor:
    """Give a spread's gradient, ``(S, J, q)``, from cross ``(S, L, r, batch, J)`` and x's, ``(S, L * r, batch, q)``."""
    return torch.bmm(cross.flatten(1, 3).mT, x.flatten(1, 2))
