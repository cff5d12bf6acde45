"""A backbone that gives pooled rows of its points, and the features that its frozen tail makes of the last block.

*Not from the paper*: what a probe, or attention over layers, reads of an image, in a hundredth of the bytes. Rows are
pooled on the device, as each value comes out of the trunk, so that no more than one value is alive at a time.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from losa_cache.backbone.model import Backbone
from losa_cache.backbone.streamed import Sink
from losa_cache.sidenet.pooled import pooling_of, tail_of_pooled
from losa_cache.sidenet.tail import FrozenTail


class PooledBackbone(Backbone):
    """Pooled rows ``(batch, m, width)`` of a trunk's points (``losa_cache.sidenet.pooled``), float32.

    Points are those of a pooled cache (``losa_cache.points.stored_points``): the last two are the output of the last
    block and ``tail``, whose m rows all hold the feature vector. So the tail behind these rows is the identity, of row
    0: whatever norms and pooling the trunk ends in, they have been done.

    Args:
        trunk: on its device; it stays as it is.
    """

    def __init__(self, trunk: Backbone) -> None:
        self._trunk = trunk
        self.model, self.name, self.input = trunk.model, trunk.name, trunk.input
        self.depth, self.width = trunk.depth, trunk.width
        self.device, self.streamed = trunk.device, trunk.streamed
        self._pool = pooling_of(trunk.tail.config)
        self._features = deepcopy(trunk.tail).to(trunk.device)
        self.tokens = self._pool.rows
        self.prefix_tokens, self.grid = self.tokens - 1, (1, 1)
        self.tail = FrozenTail(tail_of_pooled(self.width, self.tokens))

    @property
    def weights(self) -> str:
        """Hash of the trunk's weights."""
        return self._trunk.weights

    @property
    def trunk_tokens(self) -> int:
        """Tokens of the trunk itself."""
        return self._trunk.trunk_tokens

    def run(self, pixels: Tensor, points: Sequence[str], sink: Sink, *, compute: torch.dtype) -> None:
        """Run the trunk, as :meth:`Backbone.run` does; the sink is given pooled rows."""
        self._trunk.run(pixels, points[:-1], self._pooled(points, sink), compute=compute)

    def run_all(
        self, batches: Sequence[Tensor], points: Sequence[str], sinks: Sequence[Sink], *, compute: torch.dtype
    ) -> None:
        """Run the trunk, as :meth:`Backbone.run_all` does; the sinks are given pooled rows."""
        pooled = [self._pooled(points, sink) for sink in sinks]
        self._trunk.run_all(batches, points[:-1], pooled, compute=compute)

    def _pooled(self, points: Sequence[str], sink: Sink) -> Sink:
        """Give a sink that pools what it is given, and makes features of the last block's output."""
        last = len(points) - 2

        def put(at: int, value: Tensor) -> None:
            with torch.autocast(self.device.type, enabled=False):  # a tail that attends is exact, too
                sink(at, self._pool(value))
                if at == last:
                    sink(last + 1, self._features(value.float())[:, None].repeat(1, self.tokens, 1))

        return put
