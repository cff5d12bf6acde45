"""The low-rank MLP of Table 3: LoSA without token mixing."""

from collections.abc import Sequence

from torch import nn

from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.losa_stack import LoSAStack, stack_losas
from losa_cache.sidenet.network import Sizes
from losa_cache.sidenet.spec import SideSpec

SPEC = SideSpec(folds_codes=True, stacks=True)


class LowRankMLP(LoSA):
    """The low-rank MLP of Table 3: every g mixes channels."""

    @staticmethod
    def mixes_tokens(layer: int) -> bool:
        """Give ``False``: no layer does."""
        return False


def build(sizes: Sizes) -> LowRankMLP:
    """Build one; a video's tokens are treated like an image's."""
    return LowRankMLP(depth=sizes.depth, tokens=sizes.tokens, width=sizes.width, rank=sizes.rank)


def stack(networks: Sequence[nn.Module]) -> LoSAStack:
    """Stack those of one depth and shape."""
    return stack_losas(networks)
