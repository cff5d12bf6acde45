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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losa_cache.sidenet.operand import Operand
from losa_cache.sidenet.products import CHANNEL, TOKEN, correlate, project, update
from losa_cache.sidenet.readout import Readout

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Chain:
    """What a pass needs to know beside tensors.

    Attributes:
        kinds: of each layer, ``CHANNEL`` or ``TOKEN``.
        rank: r.
        readout: what of y_k is asked for.
        dtype: that products are computed in.
        added: whether the blocks are b_i + y_0 already, so that products with y_0 are not needed.
    """

    kinds: tuple[int, ...]
    rank: int
    readout: Readout
    dtype: torch.dtype
    added: bool

    def steps(self) -> list[tuple[int, tuple[int, int]]]:
        """For each layer: its kind, and how many layers of each kind come before it."""
        return [
            (kind, (self.kinds[:i].count(CHANNEL), self.kinds[:i].count(TOKEN))) for i, kind in enumerate(self.kinds)
        ]


@dataclass(frozen=True)
class Weights:
    """A chain of side layers as matrices; of each kind L layers of rank r that mix an axis of length m; S trials.

    Attributes:
        down: W_d, ``(S, L * r, m)``.
        up: alpha W_u transposed, ``(S, L * r, m)``.
        pairs: ``down up'``, ``(S, L * r, L * r)``; zero unless j < i.
        shift: E and F, ``(S, L * r, n)`` for channel layers and ``(S, L * r, d)`` for token layers.
    """

    down: Pair
    up: Pair
    pairs: Pair
    shift: Pair

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.down, *self.up, *self.pairs, *self.shift)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Weights":
        """Put :meth:`tensors` together again."""
        return cls(*zip(tensors[::2], tensors[1::2], strict=True))


def refine(chain: Chain, weights: Weights, blocks: Sequence[Operand], start: Tensor, shift: Tensor) -> Tensor:
    """Read y_k after a chain of side layers.

    Args:
        chain: the plan.
        weights: of the layers.
        blocks: their inputs b_i.
        start: y_0, ``(S or 1, batch, n, d)``.
        shift: what biases add to the result, ``(S, m, d)``, m being the rows that are read.

    Returns:
        ``(S, batch, m, d)``.
    """
    return _Refine.apply(chain, list(blocks), start, shift, *weights.tensors())


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, blocks: list[Operand], start: Tensor, shift: Tensor, *tensors: Tensor
    ) -> Tensor:
        w = Weights.of([tensor.to(chain.dtype) for tensor in tensors])
        inner = _first(chain, start, w)
        states = tuple(torch.empty_like(x) for x in inner)
        cross = _no_cross(chain, states)
        for (kind, before), block in zip(chain.steps(), blocks, strict=True):
            own, seen, r = _own(chain, kind, before), [count * chain.rank for count in before], chain.rank
            x = inner[kind][:, own]
            block.add_product(kind, x, w.down[kind][:, own])
            _add_pairs(x, w.pairs[kind][:, own, : seen[kind]], states[kind][:, : seen[kind]])
            _add_cross(x, cross[kind][:, before[kind], ..., : seen[1 - kind]], w.up[1 - kind][:, : seen[1 - kind]])
            torch.ops.aten.gelu.out(x, out=states[kind][:, own])
            later = slice(before[1 - kind], None)
            _push(states[kind][:, own], w.down[1 - kind][:, later.start * r :], cross[1 - kind][:, later, ..., own])
        ctx.chain, ctx.blocks = chain, blocks
        base = start.new_empty(0) if chain.added else start.to(chain.dtype)
        ctx.save_for_backward(base, *inner, *cross, *tensors)
        return chain.readout.read(start, states, w.up, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _backward(ctx, gradients[0])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    chain: Chain = ctx.chain
    base, *saved = ctx.saved_tensors
    inner, cross, tensors = saved[:2], saved[2:4], saved[4:]
    w = Weights.of([tensor.to(chain.dtype) for tensor in tensors])
    g = gradient.to(chain.dtype)
    states = tuple(torch.ops.aten.gelu(x) for x in inner)
    grads = tuple(chain.readout.pull(kind, g, w.up[kind]) for kind in (CHANNEL, TOKEN))
    back = _no_cross(chain, states)
    down = [torch.zeros_like(tensor) for tensor in tensors[:2]]
    for (kind, before), block in reversed(list(zip(chain.steps(), ctx.blocks, strict=True))):
        own, r = _own(chain, kind, before), chain.rank
        seen = [before[0] * r, before[1] * r]
        seen[kind] += r
        x = grads[kind][:, own]
        _add_pairs(x, w.pairs[kind][:, seen[kind] :, own].mT, grads[kind][:, seen[kind] :])
        _add_cross(x, back[kind][:, before[kind], ..., seen[1 - kind] :], w.down[1 - kind][:, seen[1 - kind] :])
        torch.ops.aten.gelu_backward.grad_input(x, inner[kind][:, own], grad_input=x)
        _push(x, w.up[1 - kind][:, : seen[1 - kind]], back[1 - kind][:, : before[1 - kind], ..., own])
        down[kind][:, own] = block.correlate(kind, x)
    up = list(chain.readout.correlate(g, states))
    for kind in (CHANNEL, TOKEN):
        if not chain.added:
            down[kind] += correlate(kind, base, grads[kind])
        down[kind] += _through_cross(back[1 - kind], states[1 - kind])
        up[kind] = up[kind] + _through_cross(cross[1 - kind], grads[1 - kind])
    pairs = [torch.bmm(x.flatten(2), y.flatten(2).mT) for x, y in zip(grads, states, strict=True)]
    shifts = [x.sum(2) for x in grads]
    d_start = None
    if ctx.needs_input_grad[2]:
        d_start = chain.readout.pull_start(gradient) + update(grads, w.down)
    found = [x.to(tensor.dtype) for x, tensor in zip((*down, *up, *pairs, *shifts), tensors, strict=True)]
    return None, None, d_start, gradient.sum(1), *found


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


def _no_cross(chain: Chain, states: Sequence[Tensor]) -> Pair:
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
