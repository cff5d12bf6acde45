"""FacT: the updates of all linear layers are one tensor, of which the factors are trained.

Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", AAAI 2023: the weights of L
blocks are 12 L matrices of d x d (queries, keys, values, projection, 4 of each MLP layer). Their update is
s U S_i V^T, with U and V (d x r) for all of them. ``tt`` (tensor train): every S_i (r x r) is trained. ``tk``
(Tucker): S_i = sum_j P_ij C_j, with P (12 L x r) and C (r x r x r). U and the S_i of ``tt`` start as linear layers of
torch, V zero, P and C Xavier-uniform, as in the authors' code: the model starts as itself. Its dropout of 0.1 is left
out. s, which they choose for each task, is 1. The update folds into the weights.

``tt`` has 2 d r + 12 L r^2 parameters: 8,448 at r = 4 in ViT-B, the 8 K of the abstract, and 61,440 at the default,
r = 16. ``tk`` has 2 d r + 12 L r + r^3: 30,976 at r = 16. The 0.06 M of ``tk`` in Table 1 of LoSA are a mean of ranks
chosen for each task, so no rank gives them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.errors import UserError
from losa_cache.tuned.inserted import around_linears, each, like, require_rank
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import LINEARS, Trunk

SPEC = MethodSpec(label="FacT", source="Jie and Deng, AAAI 2023", rank=16, variants=("tt", "tk"), merges=True)


class Factors(nn.Module):
    """What the layers share.

    Args:
        width: channels d.
        rank: r.
        count: matrices, 12 L of a plain ViT.
        tucker: whether the S_i are made of P and C.
    """

    def __init__(self, width: int, rank: int, count: int, *, tucker: bool) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5))
        self.v = nn.Parameter(torch.zeros(width, rank))
        shape = (rank, rank, rank) if tucker else (count, rank, rank)
        self.core = nn.Parameter(torch.empty(shape).uniform_(-(rank**-0.5), rank**-0.5))
        self.mix = nn.Parameter(torch.empty(count, rank)) if tucker else None
        if self.mix is not None:
            nn.init.xavier_uniform_(self.mix)
            nn.init.xavier_uniform_(self.core)

    def slices(self, first: int, count: int) -> Tensor:
        """Give S_i of matrices in a row, ``(count, rank, rank)``."""
        if self.mix is None:
            return self.core[first : first + count]
        return torch.tensordot(self.mix[first : first + count], self.core, 1)


class Factored(nn.Module):
    """A linear layer and its update, ``(..., a d)`` to ``(..., b d)``: a b of the matrices.

    Args:
        layer: the linear layer.
        factors: shared, and named where the trunk has them, not here.
        first: the layer's first matrix.
    """

    def __init__(self, layer: nn.Linear, factors: Factors, first: int) -> None:
        super().__init__()
        self.layer, self.first = layer, first
        self.shared = (factors,)
        width = factors.u.shape[1]
        self.inner, self.outer = layer.in_features // width, layer.out_features // width

    def forward(self, x: Tensor) -> Tensor:
        """Add the update."""
        return self.layer(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """Multiply with U, then all S_i at once, then V."""
        (factors,) = self.shared
        rank = len(factors.u)
        slices = factors.slices(self.first, self.inner * self.outer).view(self.outer, self.inner, rank, rank)
        middle = slices.transpose(1, 2).reshape(self.outer * rank, self.inner * rank)
        low = F.linear(x.unflatten(-1, (self.inner, -1)), factors.u).flatten(-2)
        low = F.linear(low, middle).unflatten(-1, (self.outer, -1))
        return F.linear(low, factors.v).flatten(-2)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Put the update beside all four linear layers of every block."""
    require_rank(trunk, rank)
    taken = 0
    layers: list[tuple[str, nn.Linear]] = []
    for place in LINEARS:
        layers += [(place, layer) for _, _, layer in trunk.linears(place)]
    for place, layer in layers:
        if layer.in_features % trunk.width or layer.out_features % trunk.width:
            raise UserError(
                f"{place} of backbone {trunk.name!r} maps {layer.in_features} channels to {layer.out_features}, which "
                f"are no multiples of its width, {trunk.width}: fact needs them to be; choose another method."
            )
    count = sum(layer.in_features * layer.out_features for _, layer in layers) // trunk.width**2
    factors = like(trunk, Factors(trunk.width, rank, count, tucker=variant == "tk"))
    trunk.model.fact = factors

    def around(layer: nn.Linear) -> Factored:
        nonlocal taken
        factored = Factored(layer, factors, taken)
        taken += factored.inner * factored.outer
        return factored

    for place in LINEARS:
        around_linears(trunk, place, around)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the update, as it maps the identity, to every weight."""
    for parent, name, factored in each(model, Factored):
        layer = factored.layer
        layer.weight += factored.update(torch.eye(layer.in_features).to(layer.weight)).mT
        setattr(parent, name, layer)
    del model.fact
