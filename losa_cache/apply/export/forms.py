"""An adapter in forms that exporters can trace: nothing in place, and nothing that depends on how many samples come."""

from copy import deepcopy

from torch import Tensor
from torch.nn import functional as F

from losa_cache.apply.export.sums import Sums
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.networks.fusion import Fusion
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.plain import Plain
from losa_cache.sidenet.pooled import EPS, Pooling
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.video import VideoLoSA

MOST_COLUMNS = 512
"""Layers times rank up to which LoSA is exported as sums, and above which as the equations stand.

At 192 sums are 1.9 to 2.3 times as fast in ONNX Runtime and 1.4 to 2.0 times as a .pt2 file (widths 384 and 768), at
768 they are 0.9 and 1.1 times as fast (``benchmarks/export.py --head last``, one core).
"""


def traceable(adapter: Adapter) -> Adapter:
    """Copy an adapter, with what exporters cannot trace of it in another form; its outputs are the same.

    A side network that is not named here is traced as it is.
    """
    own = deepcopy(adapter).eval().requires_grad_(False)
    side = own.side
    if isinstance(side, LoSA) and side.depth * side.rank <= MOST_COLUMNS:
        own.side = Sums(side)
    elif isinstance(side, LoSA | VideoLoSA):
        own.side = Plain(side)
    elif isinstance(side, Fusion):
        side.pooling = WholePooling(side.pooling.classes, side.pooling.prefix)
    if own.pooling is not None:
        own.pooling = WholePooling(own.pooling.classes, own.pooling.prefix)
    return own


class WholePooling(Pooling):
    """Pooling of all samples at once. On a CPU :class:`Pooling` takes a few at a time, of a number that is fixed."""

    def __call__(self, block: Tensor) -> Tensor:
        """Pool ``(batch, n, d)`` to ``(batch, m, d)``."""
        return self.normed(block)[1]

    def normed(self, block: Block) -> tuple[Tensor, Tensor]:
        """Give the normed tokens, and the rows of :meth:`__call__`."""
        (x,) = dense([block])
        normed = F.layer_norm(x.to(wide(x)), x.shape[2:], eps=EPS)
        return normed, self.rows_of(normed)
