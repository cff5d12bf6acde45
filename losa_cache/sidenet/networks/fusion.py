"""Attentive layer fusion: attention by one query to pooled rows of all layers. *Not from the paper*.

It was published with peak learning rates of 1e-1, 1e-2 or 1e-3, by validation, at batches of up to 2048.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losa_cache.sidenet.network import Sizes
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.pooled import Pooling, pooling_of
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.query import OneQuery
from losa_cache.sidenet.query_stack import QueryStack, stack_queries
from losa_cache.sidenet.spec import SideSpec

SPEC = SideSpec(rank=False, start=False, tail=False, pooled_rows=True, stacks=True, mixes_samples=True)
JITTER = 0.05  # of rows of unit length


class Fusion(OneQuery):
    """Attentive layer fusion: one query over the class token and the mean of the patches of all chosen layers.

    As published: a head for each row, and noise of standard deviation 0.05 on half of the samples. The authors pool the
    output of each block's second norm; here it is :class:`Pooling`'s rows.

    Args:
        depth: number of block outputs, or of the points that are tapped in their place.
        tokens: number of tokens of a block output, or of the rows m that it was pooled to.
        width: channels d.
        pooling: how tokens of the trunk are pooled.
        seed: seed of the noise.
    """

    def __init__(self, *, depth: int, tokens: int, width: int, pooling: Pooling, seed: int = 0) -> None:
        super().__init__(width=width, heads=depth * min(tokens, pooling.rows), seed=seed, jitter=JITTER)
        self.pooling = pooling

    def rows(self, blocks: Sequence[Block]) -> Tensor:
        """Pool each block, ``(batch, depth m, d)``, unless it has m rows already.

        If there are no more than m tokens, each is its own row: a class token and the only patch.
        """
        pool = self.pooling  # rows are widened: autocast to bfloat16 joins no float16 on CPUs
        found = [block.to(wide(block)) if block.shape[1] == pool.rows else pool(block) for block in dense(blocks)]
        return torch.cat(found, 1)


def build(sizes: Sizes) -> Fusion:
    """Build one for a trunk's pooling."""
    pooling = pooling_of(sizes.tail)
    return Fusion(depth=sizes.depth, tokens=sizes.tokens, width=sizes.width, pooling=pooling, seed=sizes.seed)


def stack(networks: Sequence[nn.Module]) -> QueryStack:
    """Stack those of one shape and seed."""
    return stack_queries(networks)
