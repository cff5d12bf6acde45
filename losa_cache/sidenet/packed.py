"""Pack the parameters of side layers into the matrices of the fast form, and unpack the gradients of these.

Nothing here is as large as a batch, so the cost is the number of operations. They are few; forward and backward are
both written out.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from losa_cache.sidenet.chain import Chain, Pair, Weights
from losa_cache.sidenet.products import CHANNEL, TOKEN


@dataclass(frozen=True)
class Packed:
    """The layers of one kind, of S trials: L layers that mix an axis of length m, rank r.

    Attributes:
        down: W_d, ``(S, L, r, m)``.
        down_bias: ``(S, L, r)``.
        up: W_u transposed, ``(S, L, r, m)``.
        up_bias: ``(S, L, m)``.
        scale: alpha, ``(S, L)``.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scale: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def part(self, first: int, last: int) -> "Packed":
        """Take some of the layers."""
        return Packed(*(tensor[:, first:last] for tensor in self.tensors()))


@dataclass(frozen=True)
class Sums:
    """Sums of biases, by kind, and alpha W_u in the parameters' dtype; they are kept for the backward pass.

    Attributes:
        up: ``(S, L * r, m)``.
        along: output biases of earlier layers of the same kind, ``(S, L, m)``.
        across: those of earlier layers of the other kind, ``(S, L, q)``.
        row: of W_d, ``(S, L, r)``.
    """

    up: Pair
    along: Pair
    across: Pair
    row: Pair

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.up, *self.along, *self.across, *self.row)

    @classmethod
    def of(cls, tensors: "tuple[Tensor, ...] | list[Tensor]") -> "Sums":
        """Put :meth:`tensors` together again."""
        return cls(*zip(tensors[::2], tensors[1::2], strict=True))


@dataclass(frozen=True)
class Gradients:
    """Gradients of the matrices of a chain, by kind; an axis of tokens may be longer than n.

    Attributes:
        down, down_cross: of W_d, ``(S, L * r, m)``, as a sum of two.
        up, up_cross: of alpha W_u, likewise.
        pairs: ``(S, L * r, L * r)``; only entries with j < i are used.
        shift: ``(S, L * r, q)``, in float32 or wider.
        total: of the sum of all output biases, ``(S, m)``.
    """

    down: Pair
    down_cross: Pair
    up: Pair
    up_cross: Pair
    pairs: Pair
    shift: Pair
    total: Pair

    def contiguous(self) -> "Gradients":
        """Lay all out in order."""
        pairs = (getattr(self, field.name) for field in fields(self))
        return Gradients(*((x.contiguous(), y.contiguous()) for x, y in pairs))


def pack(chain: Chain, layers: tuple[Packed, Packed]) -> tuple[Weights, Sums, Pair]:
    """Make the matrices of a chain.

    Returns:
        them, in the parameters' dtype; the sums; and what all output biases add to y_k, ``(S, d)`` to every token and
        ``(S, n)`` to every channel.
    """
    biases = [own.up_bias * own.scale[..., None] for own in layers]
    ups, alongs, acrosses, rows, pairs, shifts = [], [], [], [], [], []
    for kind, own in enumerate(layers):
        up = torch.mul(own.up, own.scale[..., None, None], out=own.up.new_empty(own.up.shape))
        ups.append(up.flatten(1, 2))
        alongs.append(chain.earlier(kind, kind, up) @ biases[kind])
        acrosses.append(chain.earlier(kind, 1 - kind, up) @ biases[1 - kind])
        rows.append(own.down.sum(-1))
        constant = own.down_bias + (own.down @ alongs[kind][..., None]).squeeze(-1)
        shifts.append(
            torch.addcmul(constant[..., None], rows[kind][..., None], acrosses[kind][:, :, None]).flatten(1, 2)
        )
        pairs.append(own.down.flatten(1, 2) @ ups[kind].mT)
    down = (layers[CHANNEL].down.flatten(1, 2), layers[TOKEN].down.flatten(1, 2))
    weights = Weights(down, _pair(ups), _pair(pairs), _pair(shifts))
    total = (biases[CHANNEL].sum(1), biases[TOKEN].sum(1))
    return weights, Sums(_pair(ups), _pair(alongs), _pair(acrosses), _pair(rows)), total


def unpack(chain: Chain, layers: tuple[Packed, Packed], sums: Sums, gradients: Gradients) -> tuple[Packed, Packed]:
    """Give the gradients of the parameters from those of :func:`pack`'s results; other arguments as there."""
    downs, ups, alongs, acrosses, constants = [], [], [], [], []
    for kind, own in enumerate(layers):
        shape, wide = own.down.shape, own.down.dtype
        used = chain.earlier(kind, kind, own.down).repeat_interleave(chain.rank, 0).repeat_interleave(chain.rank, 1)
        pairs = gradients.pairs[kind].to(wide) * used
        shift = gradients.shift[kind].to(wide).unflatten(1, shape[1:3])
        constant = shift.sum(-1)
        row = (shift @ sums.across[kind][..., None]).squeeze(-1)
        down = torch.baddbmm((gradients.down[kind] + gradients.down_cross[kind]).to(wide), pairs, sums.up[kind])
        downs.append(down.view(shape).addcmul_(constant[..., None], sums.along[kind][:, :, None]).add_(row[..., None]))
        up = (gradients.up[kind] + gradients.up_cross[kind]).to(wide)
        ups.append(torch.baddbmm(up, pairs.mT, own.down.flatten(1, 2)).view(shape))
        alongs.append((constant[..., None, :] @ own.down).squeeze(2))
        acrosses.append((sums.row[kind][..., None, :] @ shift).squeeze(2))
        constants.append(constant)
    found = []
    for kind, own in enumerate(layers):
        bias = chain.earlier(kind, kind, own.down).mT @ alongs[kind] + gradients.total[kind][:, None]
        bias += chain.earlier(1 - kind, kind, own.down).mT @ acrosses[1 - kind]
        scale = (ups[kind] * own.up).sum((2, 3)) + (bias * own.up_bias).sum(2)
        up = torch.mul(ups[kind], own.scale[..., None, None], out=torch.empty_like(own.up))  # in its order of axes
        found.append(Packed(downs[kind], constants[kind], up, bias * own.scale[..., None], scale))
    return found[CHANNEL], found[TOKEN]


def _pair(tensors: list[Tensor]) -> Pair:
    return tensors[CHANNEL], tensors[TOKEN]
