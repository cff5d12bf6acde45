"""Batches from the backbone itself, run anew for every batch: what the cache saves, as the same contract."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.ahead import work_ahead
from losa_cache.backbone import Backbone
from losa_cache.cache.precision import Precision
from losa_cache.data.samples import Samples
from losa_cache.train.batch import Batch, split_rows


class OnlineSource:
    """Decode ahead in threads, run the frozen backbone, hand on its block outputs rounded as a cache would.

    Args:
        backbone: on the training device.
        samples: rows index them.
        layers: block numbers, ascending.
        precision: to round to, so that online and cached batches are the same.
        workers: decoding threads.
    """

    def __init__(
        self, backbone: Backbone, samples: Samples, layers: Sequence[int], precision: Precision, *, workers: int
    ) -> None:
        self.backbone, self.samples, self.layers, self.precision = backbone, samples, list(layers), precision
        self._transform = backbone.input.transform()
        self._compute = backbone.compute_dtype(precision.name)
        self._decoders = ThreadPoolExecutor(workers, "decode")

    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """Yield the samples of these rows, in this order."""
        device = self.backbone.device
        for chosen, pixels in work_ahead(self._decode, split_rows(rows, batch_size)):
            blocks: list[Tensor] = []
            self.backbone.run(pixels.to(device), self.layers, self._taker(blocks), compute=self._compute)
            labels = torch.from_numpy(self.samples.labels[chosen]).to(device)
            yield Batch(blocks, labels, [self.samples.ids[row] for row in chosen])

    def close(self) -> None:
        """Stop decoding."""
        self._decoders.shutdown()

    def _taker(self, blocks: list[Tensor]) -> Callable[[int, Tensor], None]:
        def take(_: int, output: Tensor) -> None:
            with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor, which autograd may save
                blocks.append(output.to(self.precision.dtype, copy=True))

        return take

    def _decode(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
        return rows, torch.stack(
            list(self._decoders.map(lambda i: self._transform(self.samples.load(i)), rows.tolist()))
        )
