"""A :class:`~losa_cache.tuned.tuned.Tuned` at the start of its training."""

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.sidenet.build import build_adapter
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.tuned.insert import insert_method
from losa_cache.tuned.spec import Method
from losa_cache.tuned.tuned import Tuned

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone

TAIL = ("norm", "fc_norm", "attn_pool")
"""What timm calls the modules of a frozen tail."""


def new_tuned(
    backbone: "Backbone",
    method: Method,
    arguments: Mapping[str, Any],
    *,
    device: torch.device,
    copy: bool = True,
    grad_checkpointing: bool = False,
) -> Tuned:
    """Put a method into a backbone, and a classifier or decoder behind it.

    Args:
        backbone: frozen.
        method: what is trained inside.
        arguments: of the adapter (:func:`losa_cache.sidenet.build.build_adapter`), whose side network is ``linear``;
            ``seed`` is that of the method's start, too.
        device: to train on.
        copy: as of :func:`~losa_cache.tuned.insert.insert_method`.
        grad_checkpointing: compute each block again in the backward pass, in place of keeping its activations.

    Raises:
        UserError: as of :func:`~losa_cache.tuned.insert.insert_method`, and for a backbone without checkpointing.
    """
    changed = insert_method(backbone, method, seed=arguments.get("seed", 0), copy=copy).to(device)
    adapter = build_adapter(arguments, deepcopy(backbone.tail)).to(device)
    if method.spec.tail:
        _share_tail(adapter.tail, changed.model)
    tuned = Tuned(changed, adapter, method).eval()
    _freeze_unused(tuned)
    if grad_checkpointing:
        _checkpoint(changed)
    return tuned


def _share_tail(tail: FrozenTail, model: nn.Module) -> None:
    """Let a tail compute by the model's own modules, which are trained."""
    for name in TAIL:
        if getattr(tail, name) is not None and (own := getattr(model, name, None)) is not None:
            setattr(tail, name, own)


def _freeze_unused(tuned: Tuned) -> None:
    """Freeze what no output depends on, such as a mask token: it would get no gradient, and the optimiser no state."""
    backbone = tuned.backbone
    with torch.enable_grad():
        outputs = tuned([torch.zeros(1, *backbone.input.shape, device=backbone.device)])
    used = _leaves(outputs)
    for own in tuned.trunk.parameters():
        own.requires_grad_(own.requires_grad and id(own) in used)


def _leaves(outputs: Tensor) -> set[int]:
    """Give the identities of the tensors that get a gradient from outputs."""
    found, seen, ahead = set(), set(), [outputs.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        ahead += [before for before, _ in node.next_functions]
    return found


def _checkpoint(backbone: "Backbone") -> None:
    """Have timm's model compute its blocks again in the backward pass.

    Raises:
        UserError: for a model that cannot.
    """
    try:
        backbone.model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError(
            f"backbone {backbone.name!r} has no gradient checkpointing: leave out --grad-checkpointing."
        ) from error
