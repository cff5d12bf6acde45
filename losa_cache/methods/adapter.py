"""Adapters: a bottleneck with a residual connection behind the sublayers of every block.

``houlsby`` (Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, section 2.1): two a block,
behind the attention and behind the MLP, before the residual sum; y becomes y + W_u f(W_d y + b_d) + b_u. Weights
start normal with a deviation of 0.01, cut off at two of them, and biases zero, so that the model starts near itself,
not as itself. ``pfeiffer`` (Pfeiffer et al., "AdapterFusion", EACL 2021): one a block, behind the MLP.

f is GELU and the default width 8, which is *not from these publications*:
12 (2 * 768 * 8 + 8 + 768) = 156,768 parameters of ``pfeiffer`` are the 0.16 M of "Adapter" in Table 1 of LoSA. ``houlsby`` has twice as many.
"""

from torch import nn
from torch.nn import functional as F

from losa_cache.tuned.inserted import BRANCHES, MLP, Behind, Bottleneck, around_branches, require_rank
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="adapter", source="Houlsby et al., ICML 2019", rank=8, variants=("houlsby", "pfeiffer"))
DEVIATION = 0.01


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Put adapters of width ``rank`` behind both branches, or behind the MLP."""
    require_rank(trunk, rank)

    def make() -> Bottleneck:
        adapter = Bottleneck(trunk.width, rank, F.gelu)
        for layer in (adapter.down, adapter.up):
            nn.init.trunc_normal_(layer.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
            nn.init.zeros_(layer.bias)
        return adapter

    for kind in BRANCHES if variant == "houlsby" else (MLP,):
        around_branches(trunk, kind, Behind, make)
