"""What a method has trained, put into the frozen backbone again."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError
from losa_cache.sidenet.adapter_file import require_alike
from losa_cache.tuned.build import new_tuned
from losa_cache.tuned.spec import Method, load_method

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone
    from losa_cache.train.trained_adapter import TrainedAdapter


def trunk_of(backbone: "Backbone", adapter: "TrainedAdapter") -> "Backbone":
    """Give a copy of a frozen backbone that an adapter's method has changed (arguments as of :func:`trained_trunk`)."""
    assert adapter.method is not None, "a side network changes no backbone"
    return trained_trunk(backbone, adapter.method, adapter.config["adapter"], adapter.inside)


def trained_trunk(
    backbone: "Backbone", method: Method, arguments: Mapping[str, Any], inside: Mapping[str, Tensor]
) -> "Backbone":
    """Give a copy of a frozen backbone with what was trained in place.

    Args:
        backbone: on its device; it stays as it is.
        method: what was trained inside.
        arguments: of the adapter behind it, as its file has them.
        inside: the trained tensors, by their names in the changed trunk.

    Returns:
        the changed backbone, frozen, on the same device, with the tail as it was trained. Where the method merges, what
        was trained is part of the backbone's own weights.

    Raises:
        UserError: if the tensors are not those of the method in this backbone.
    """
    tuned = new_tuned(backbone, method, arguments, device=torch.device("cpu"))
    wanted = tuned.inside()
    try:
        if strange := inside.keys() ^ wanted.keys():
            raise UnreadableError(f"{min(strange)} is only in one of them")
        for name, value in wanted.items():
            require_alike(inside[name], value, name, "in the backbone")
    except UnreadableError as error:
        raise UserError(
            f"what method {method} has trained does not fit backbone {backbone.name!r}: {error}."
        ) from error
    tuned.trunk.load_state_dict(inside, strict=False)
    if method.spec.merges:
        load_method(method.name).merge(tuned.trunk)
    return backbone.around(tuned.trunk).to(backbone.device)
