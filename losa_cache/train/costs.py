"""What a forward pass costs, in multiply-accumulates: that of an adapter, and that of its backbone."""

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import torch

from losa_cache.errors import UserError
from losa_cache.inputs_config import RANDOM
from losa_cache.machine.macs import count_macs, without_values
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.plain import Plain
from losa_cache.sidenet.video import VideoLoSA
from losa_cache.tuned.spec import load_method
from losa_cache.tuned.tuned import Model, Tuned, adapter_of

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone
    from losa_cache.train.training_data import TrainingData


def run_costs(model: Model, data: "TrainingData") -> dict[str, Any]:
    """Count what is the same in every epoch of a run.

    Returns:
        ``parameters`` (trained ones), ``adapter_macs`` (what is added to the frozen backbone's) and,
        of a run with the backbone in the loop, ``inference_macs``: those of a whole forward pass, with what can be
        merged merged. From a cache nothing is known of the backbone but its name, which :func:`backbone_macs_of` takes.
    """
    own = adapter_macs(adapter_of(model), len(data.points))
    costs = {"parameters": model.parameter_counts(), "adapter_macs": own}
    if isinstance(model, Tuned):
        changed = tuned_macs(model)
        costs["inference_macs"] = own + changed
        costs["adapter_macs"] = own + changed - (changed if model.frozen_macs is None else model.frozen_macs)
    elif data.backbone is not None:
        costs["inference_macs"] = own + backbone_macs(data.backbone)
    return costs


def tuned_macs(tuned: Tuned) -> int:
    """Count the multiply-accumulates of a changed backbone, merged where its method merges."""
    own = _without_values(tuned.backbone)
    if tuned.method.spec.merges:
        load_method(tuned.method.name).merge(own.model)
    return _count_blocks(own)


def adapter_macs(adapter: Adapter, points: int) -> int:
    """Count the multiply-accumulates that an adapter adds to a sample: side network, frozen tail, and classifier.

    LoSA is counted as its equations stand, 2 r n d a layer, which its fast form does in another order.

    Args:
        adapter: which is left as it is.
        points: number of blocks that it takes.
    """
    own = deepcopy(adapter).cpu().eval().requires_grad_(False)
    if isinstance(own.side, LoSA | VideoLoSA):
        own.side = Plain(own.side)
    block = torch.zeros(1, own.tokens, int(own.tail.config["width"]))
    return count_macs(lambda: own([block] * points))


def backbone_macs(backbone: "Backbone") -> int:
    """Count the multiply-accumulates of a backbone's blocks, for an image or a clip; nothing is computed."""
    return _count_blocks(_without_values(backbone))


def _without_values(backbone: "Backbone") -> "Backbone":
    own = copy(backbone)
    own.streamed = None  # which holds memory of the device; nothing passes through it
    return without_values(own, (*own.model.parameters(), *own.model.buffers()))


def _count_blocks(backbone: "Backbone") -> int:
    image = torch.empty(1, *backbone.input.shape, device="meta")
    beside = sum(getattr(own, "elementwise_macs", 0) for own in backbone.model.modules())
    return count_macs(lambda: backbone.traced(image, [f"block.{backbone.depth}"])) + beside


def backbone_macs_of(fields: Mapping[str, Any]) -> int | None:
    """Count those of the backbone of a cache or an adapter, without its weights.

    Args:
        fields: its identity's.

    Returns:
        ``None`` if the backbone's name alone does not say how it is built.
    """
    from losa_cache.backbone import load_backbone

    spec, video = fields["input"], fields["input"].get("frames", 1) > 1
    clip = {"frames": spec["frames"], "stride": spec["stride"]} if video else {}
    try:
        with torch.device("meta"):
            backbone = load_backbone(fields["backbone"]["name"], weights=RANDOM, img_size=spec["size"][2], **clip)
    except UserError:
        return None
    return _count_blocks(backbone)
