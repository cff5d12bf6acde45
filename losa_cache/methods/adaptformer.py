"""AdaptFormer: a bottleneck parallel to the MLP of every block.

Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022, section 3.2:
with x' behind the attention, x = MLP(LN(x')) + s ReLU(LN(x') W_down) W_up + x'. s = 0.1, and the start (W_down
Kaiming-uniform, all else zero, so that the model starts as itself) are those of the authors' code, which leaves out
the LN of the bottleneck; here it is the MLP's, as in the equation. Their dropout of 0.1 is left out.

12 (2 * 768 * r + r + 768) = 156,768 parameters at r = 8 are the 0.16 M of Table 1 of LoSA. The default of the authors'
code is r = 64.
"""

from torch import nn
from torch.nn import functional as F

from losa_cache.tuned.inserted import MLP, Beside, Bottleneck, around_branches, require_rank
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="AdaptFormer", source="Chen et al., NeurIPS 2022", rank=8)
SCALE = 0.1


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Put a bottleneck of width ``rank`` beside every MLP."""
    require_rank(trunk, rank)

    def make() -> Bottleneck:
        adapter = Bottleneck(trunk.width, rank, F.relu, SCALE)
        nn.init.kaiming_uniform_(adapter.down.weight, a=5**0.5)
        for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
            nn.init.zeros_(tensor)
        return adapter

    around_branches(trunk, MLP, Beside, make)
