"""Modules that several methods insert into a trunk, and where: around a branch of a block, or around a linear layer.

They keep no state but parameters, and take and give what the module inside does: points, gradient checkpointing and
exporters see blocks as they were.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.errors import UserError
from losa_cache.tuned.trunk import Trunk

ATTENTION, MLP = "attn", "mlp"
BRANCHES = (ATTENTION, MLP)
M = TypeVar("M", bound=nn.Module)


class Bottleneck(nn.Module):
    """x to s W_u f(W_d x + b_d) + s b_u, along the channels: ``(..., width)`` to ``(..., width)``.

    Args:
        width: channels d.
        rank: inner width r.
        activation: f.
        scale: s.
    """

    def __init__(self, width: int, rank: int, activation: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        self.activation, self.scale = activation, scale

    def forward(self, x: Tensor) -> Tensor:
        """Compute it; s multiplies the r inner channels, not the d outer ones."""
        return self.widen(self.activation(self.down(x)))

    def widen(self, hidden: Tensor) -> Tensor:
        """Give s W_u h + s b_u for ``(..., rank)``."""
        if self.scale == 1:
            return self.up(hidden)
        return F.linear(hidden * self.scale, self.up.weight, self.up.bias * self.scale)


class LayerScale(nn.Module):
    """A layer scale that the block has as a parameter, as a module."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the channels."""
        return x * self.gamma


class Branch(nn.Module):
    """A branch of a block, its layer scale included, and a module that is trained with it.

    The published methods know no layer scale. It comes first, so that it does not scale what is trained
    (*not from the publications*).

    What is trained has another name in each kind: a file of one is refused where the other is named.
    """

    def __init__(self, branch: nn.Module, scale: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale
        self.add_module(type(self).__name__.lower(), trained)


class Beside(Branch):
    """x to branch(x) + beside(x)."""

    beside: nn.Module

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Add both."""
        return self.scale(self.branch(x, *args, **options)) + self.beside(x)


class Behind(Branch):
    """x to y + behind(y) with y = branch(x)."""

    behind: nn.Module

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Refine what the branch adds to the residual stream."""
        y = self.scale(self.branch(x, *args, **options))
        return y + self.behind(y)


def around_branches(trunk: Trunk, kind: str, around: type[Branch], make: Callable[[], nn.Module]) -> None:
    """Put a module that is trained beside or behind a branch, ``ATTENTION`` or ``MLP``, of every block.

    Raises:
        UserError: for a trunk whose blocks have no such branch.
    """
    number = 1 + BRANCHES.index(kind)
    for block, branch in trunk.branches(kind):
        setattr(block, kind, around(branch, _take_scale(block, number), like(trunk, make())))


def _take_scale(block: nn.Module, number: int) -> nn.Module:
    """Take the layer scale of a block's first or second branch out of the block."""
    module, parameter = f"ls{number}", f"gamma_{number}"
    scale = getattr(block, module, None)
    gamma = getattr(block, parameter, None)
    if isinstance(scale, nn.Module):
        setattr(block, module, nn.Identity())
        return scale
    if isinstance(gamma, nn.Parameter):  # BEiT asks the first one whether there is any, so ones stay in its place
        setattr(block, parameter, nn.Parameter(torch.ones_like(gamma), requires_grad=False))
        return LayerScale(gamma)
    return nn.Identity()


def around_linears(trunk: Trunk, place: str, around: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layer at a place (``losa_cache.tuned.trunk.LINEARS``) of every block.

    Raises:
        UserError: for a trunk whose blocks have none there, or do not call it.
    """
    require_called(trunk, place)
    for parent, name, layer in trunk.linears(place):
        setattr(parent, name, around(layer))


def require_called(trunk: Trunk, place: str) -> None:
    """Refuse a place where blocks have no linear layer, or use its weights without calling it.

    EVA-02 and BEiT add biases of queries and values that lie beside ``attn.qkv``.

    Raises:
        UserError: as it says.
    """
    for parent, _, _ in trunk.linears(place):
        if place == "attn.qkv" and getattr(parent, "q_bias", None) is not None:
            raise UserError(
                f"backbone {trunk.name!r} keeps the biases of its queries and values apart from attn.qkv, which it "
                "does not call: choose a plain ViT, or another method."
            )


def require_rank(trunk: Trunk, rank: int, *, default: int = 0) -> None:
    """Refuse an inner width.

    Args:
        trunk: that is changed.
        rank: the inner width.
        default: that of the method, if it may be above the trunk's width.

    Raises:
        UserError: for one below 1, or above the trunk's width and the default.
    """
    if not 1 <= rank <= max(trunk.width, default):
        known = f"{default}, the default" if default > trunk.width else f"the backbone's width, {trunk.width}"
        raise UserError(f"rank is {rank}: choose one from 1 to {known}.")


def like(trunk: Trunk, module: M) -> M:
    """Move a new module to the device and dtype of the trunk. Its start was drawn on the CPU, the same for all."""
    own = next(trunk.model.parameters())
    return module.to(own.device, own.dtype)


def each(model: nn.Module, kind: type[M]) -> Iterator[tuple[nn.Module, str, M]]:
    """Give all modules of a kind: the parent, the name there, the module itself."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                yield parent, name, child
