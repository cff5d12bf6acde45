"""LoSA, the paper's side network: on images, and on videos with space and time mixed separately (Eq. 6)."""

from collections.abc import Sequence

from torch import nn

from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.losa_stack import LoSAStack, stack_losas
from losa_cache.sidenet.network import Sizes
from losa_cache.sidenet.spec import SideSpec
from losa_cache.sidenet.video import VideoLoSA

SPEC = SideSpec(folds_codes=True, stacks=True)


def build(sizes: Sizes) -> LoSA | VideoLoSA:
    """Build one for images, or for videos if there is a grid."""
    depth, width, rank = sizes.depth, sizes.width, sizes.rank
    if sizes.grid is None:
        return LoSA(depth=depth, tokens=sizes.tokens, width=width, rank=rank)
    frames, rows, columns = sizes.grid
    prefix = sizes.tokens - frames * rows * columns
    return VideoLoSA(depth=depth, frames=frames, places=rows * columns, prefix=prefix, width=width, rank=rank)


def stack(networks: Sequence[nn.Module]) -> LoSAStack:
    """Stack those of one depth and shape, for images."""
    return stack_losas(networks)
