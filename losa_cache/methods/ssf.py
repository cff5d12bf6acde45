"""SSF: every operation's output is scaled and shifted, channel by channel.

Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022, section
3.2: y = gamma * x + beta behind the patch embedding, the norms and the linear layers of every block, and the final
norm. gamma starts normal around 1, beta around 0, both with the deviation 0.02 of the authors' code, so the model
starts near itself. All of it folds into the operations (section 3.2, re-parameterisation).

2 (768 + 12 * 11 * 768 + 768) = 205,824 parameters. The publication's 0.24 M on VTAB-1k and 0.39 M on FGVC are this
and the mean classifier, of 49.5 and of 234.6 classes.
"""

import torch
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.tuned.inserted import around_linears, each, like
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import LINEARS, Trunk

SPEC = MethodSpec(label="SSF", source="Lian et al., NeurIPS 2022", tail=True, merges=True)
DEVIATION = 0.02


class Scaled(nn.Module):
    """gamma * operation(x) + beta, ``(..., width)``, rounded once to the dtype that the operation gives.

    Args:
        operation: a linear layer or a norm.
        width: channels of what it gives.
    """

    def __init__(self, operation: nn.Module, width: int) -> None:
        super().__init__()
        self.operation = operation
        self.scale = nn.Parameter(torch.empty(width).normal_(1, DEVIATION))
        self.shift = nn.Parameter(torch.empty(width).normal_(0, DEVIATION))

    def forward(self, x: Tensor) -> Tensor:
        """Compute it in the parameters' dtype: gamma is too near to 1 for fewer bits."""
        y = self.operation(x)
        return torch.addcmul(self.shift, y, self.scale).to(y.dtype)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Scale and shift behind the patch embedding, and behind all norms and linear layers of the blocks and the end."""
    embed = trunk.model.patch_embed
    assert isinstance(embed, nn.Module)
    for place in LINEARS:
        around_linears(trunk, place, lambda layer: like(trunk, Scaled(layer, layer.out_features)))
    for block in trunk.blocks:
        for name in ("norm1", "norm2"):
            setattr(block, name, _scaled_norm(trunk, getattr(block, name, None)))
    for name in ("norm", "fc_norm"):
        if _has_norm(trunk.model, name):
            setattr(trunk.model, name, _scaled_norm(trunk, getattr(trunk.model, name)))
    embedded = like(trunk, Scaled(nn.Identity(), trunk.width))  # behind the convolution, which a norm may follow
    embed.norm = nn.Sequential(embedded, _scaled_norm(trunk, embed.norm)) if _has_norm(embed, "norm") else embedded


def _has_norm(parent: nn.Module, name: str) -> bool:
    return not isinstance(getattr(parent, name, None), nn.Identity | None)


def _scaled_norm(trunk: Trunk, norm: object) -> Scaled:
    if not (isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None):
        raise UserError(
            f"backbone {trunk.name!r} has a norm without weight or bias (a {type(norm).__name__}), into which a shift "
            "does not fold: choose a plain ViT, or another method."
        )
    return like(trunk, Scaled(norm, trunk.width))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold every scale and shift into the weight and bias before them."""
    embed = model.patch_embed
    assert isinstance(embed, nn.Module)
    found = embed.norm
    first, embed.norm = found if isinstance(found, nn.Sequential) else (found, nn.Identity())
    assert isinstance(first, Scaled)
    _fold(getattr(embed, "proj", embed), first)
    for parent, name, scaled in each(model, Scaled):
        _fold(scaled.operation, scaled)
        setattr(parent, name, scaled.operation)


def _fold(operation: nn.Module, scaled: Scaled) -> None:
    weight, bias = operation.weight, operation.bias
    assert isinstance(weight, Tensor)
    scale, shift = scaled.scale, scaled.shift
    folded = shift.clone() if bias is None else torch.addcmul(shift, bias, scale)  # type: ignore[arg-type]
    weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
    operation.bias = nn.Parameter(folded, requires_grad=False)
