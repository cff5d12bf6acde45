"""A method put into a backbone."""

from copy import deepcopy
from typing import TYPE_CHECKING

import torch

from losa_cache.errors import UserError
from losa_cache.tuned.spec import Method, load_method
from losa_cache.tuned.trunk import Trunk

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone


def insert_method(backbone: "Backbone", method: Method, *, seed: int, copy: bool = True) -> "Backbone":
    """Put a method into a backbone.

    Args:
        backbone: frozen.
        method: what is trained inside.
        seed: of the random start of what is added.
        copy: leave the backbone as it is; otherwise it must not be used again.

    Returns:
        the changed backbone, on the CPU: the same numbers on every device start the same training. What the method
        trains requires gradients, and ``weights`` is the hash of what was frozen.

    Raises:
        UserError: for a backbone that the method cannot change, or that is streamed through its device.
    """
    if backbone.streamed is not None:
        raise UserError(
            f"backbone {backbone.name!r} is too large for {backbone.device}, and method {method} trains inside it: "
            "choose a larger device, or a side network (--side), which needs its outputs alone."
        )
    if method.spec.video and len(backbone.grid) != 3:
        raise UserError(
            f"method {method} mixes the tokens of a video along time, and backbone {backbone.name!r} takes images: "
            "choose one of videos, as vivit_b, or another method."
        )
    frozen = backbone.weights  # hashed before anything changes
    model = (deepcopy(backbone.model) if copy else backbone.model).cpu()
    trunk = Trunk(backbone.name, model, backbone.width, backbone.prefix_tokens, backbone.grid)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        load_method(method.name).insert(trunk, rank=method.rank, variant=method.variant)
    trained = {name for name, own in model.named_parameters() if own.requires_grad}
    if not trained:
        raise UserError(f"method {method} finds nothing to train in backbone {backbone.name!r}: choose another method.")
    changed = backbone.around(model, tail=backbone.tail)
    assert changed.weights == frozen
    for name, own in model.named_parameters():
        own.requires_grad_(name in trained)
    return changed
