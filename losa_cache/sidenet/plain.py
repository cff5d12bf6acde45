"""LoSA as the paper's equations stand, in the place of its fast form."""

from collections.abc import Sequence

from torch import Tensor, nn

from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.video import VideoLoSA


class Plain(nn.Module):
    """A LoSA as the paper's equations stand (:meth:`LoSA.plain`).

    Args:
        side: for images or videos.
    """

    def __init__(self, side: LoSA | VideoLoSA) -> None:
        super().__init__()
        self.side = side

    def forward(self, blocks: Sequence[Tensor], readout: Readout | None = None) -> Tensor:
        """Refine the backbone's output (arguments and result as of :meth:`LoSA.forward`)."""
        return (readout or Whole()).rows(self.side.plain(blocks))
