"""The attentive probe: attention by one query to all tokens of the last block. *Not from the paper*.

It was published with peak learning rates of 1e-1, 1e-2 or 1e-3, by validation, at batches of up to 2048.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from losa_cache.sidenet.network import Sizes
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.query import OneQuery
from losa_cache.sidenet.query_stack import QueryStack, stack_queries
from losa_cache.sidenet.spec import SideSpec

SPEC = SideSpec(rank=False, start=False, tail=False, last_layer=True, stacks=True, mixes_samples=True)
TOKEN_HEADS = 8


class Attentive(OneQuery):
    """The attentive probe: one query over all tokens of the last block.

    As published together with attentive layer fusion: 8 heads. Its noise is left out: on all tokens it would take
        longer than the rest of a step.

    Args:
        width: channels d.
        seed: of the noise.
    """

    def __init__(self, *, width: int, seed: int = 0) -> None:
        super().__init__(width=width, heads=TOKEN_HEADS, seed=seed)

    def rows(self, blocks: Sequence[Block]) -> Tensor:
        """Take the last block."""
        return dense(blocks[-1:])[0]


def build(sizes: Sizes) -> Attentive:
    """Build one; only the width counts."""
    return Attentive(width=sizes.width, seed=sizes.seed)


def stack(networks: Sequence[nn.Module]) -> QueryStack:
    """Stack those of one shape and seed."""
    return stack_queries(networks)
