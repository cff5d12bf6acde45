"""The linear probe: no side network. It is the baseline for all others."""

from collections.abc import Sequence

from torch import Tensor, nn

from losa_cache.sidenet.network import Sizes
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.spec import SideSpec

SPEC = SideSpec(lr=1e-2, rank=False, start=False, last_layer=True, pooled_rows=True)  # a probe of rate 1e-3 lags


class Unchanged(nn.Module):
    """y_k = y_0: only the classifier behind the frozen tail is trained."""

    def forward(self, blocks: Sequence[Block], readout: Readout | None = None) -> Tensor:
        """Read the rows of y_0, the last block, ``(batch, rows, width)``, in float32 or wider."""
        return (readout or Whole()).rows(dense(blocks[-1:])[0])


def build(sizes: Sizes) -> Unchanged:
    """Build one; it has no sizes."""
    return Unchanged()
