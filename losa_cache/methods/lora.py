"""LoRA by PEFT: the linear layers of every block, each with an update of low rank.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1, Eq. 3: W x becomes
W x + (alpha / r) B A x. A starts Kaiming-uniform, B zero: the model starts as itself. alpha = r, so that the scale is 1.
The update folds into W.

The publication adapts queries and values. Here they are one layer, ``attn.qkv``, with the keys. At r = 8, the default,
that is 12 * 8 (768 + 3 * 768) = 294,912 parameters: as many as queries and values apart, 12 * 8 * 2 (768 + 768), the
0.29 M of Table 1 of LoSA. All four layers, which ``lora`` alone means, have 1,179,648.
"""

import re
from typing import Any

from torch import nn

from losa_cache.extras import extra
from losa_cache.tuned.inserted import each, require_called, require_rank
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import LINEARS, Trunk

SPEC = MethodSpec(
    label="LoRA",
    source="Hu et al., ICLR 2022",
    rank=8,
    variants=("qkv+proj+mlp", "qkv", "proj", "mlp"),
    joins=True,
    merges=True,
)
PLACES = {"qkv": LINEARS[:1], "proj": LINEARS[1:2], "mlp": LINEARS[2:]}


def _peft() -> Any:
    with extra("peft", "lora needs PEFT", "methods"):
        import peft
    return peft


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Put an update of rank ``rank`` beside the layers that the variant names."""
    peft = _peft()
    require_rank(trunk, rank)
    assert isinstance(variant, str)
    places = [place for name in variant.split("+") for place in PLACES[name]]
    for place in places:
        require_called(trunk, place)
    targets = rf"blocks\.\d+\.(?:{'|'.join(map(re.escape, places))})"
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    peft.inject_adapter_in_model(config, trunk.model)
    for _, _, layer in each(trunk.model, peft.tuners.lora.LoraLayer):
        layer.cast_input_dtype_enabled = False  # to float32, which autocast would only take back


def merge(model: nn.Module) -> None:
    """Add the updates to the weights."""
    for parent, name, layer in each(model, _peft().tuners.lora.LoraLayer):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    del model.peft_config
