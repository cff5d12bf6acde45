"""Batches from a cache: the next one is read while this one trains."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.ahead import work_ahead
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.store import ActivationCache
from losa_cache.train.batch import Batch, split_rows

SLOTS = 2


class CachedSource:
    """Read batches into two preallocated (pinned, for a GPU) buffers in turn, by threads.

    Args:
        cache: to read.
        layers: block numbers, ascending.
        device: where the batches go.
    """

    def __init__(self, cache: ActivationCache, layers: Sequence[int], device: torch.device) -> None:
        self.cache, self.device = cache, device
        self._reader = BlockReader(cache, layers)
        self._shape = (len(layers), cache.layout.tokens, cache.layout.width)
        self._buffers = torch.empty(0)
        self._copied: list[torch.cuda.Event | None] = [None] * SLOTS

    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """Yield the samples of these rows, in this order."""
        layers, tokens, width = self._shape
        if self._buffers.ndim == 1 or self._buffers.shape[2] < min(batch_size, len(rows)):
            self._buffers = torch.empty(
                (SLOTS, layers, min(batch_size, len(rows)), tokens, width),
                dtype=self.cache.precision.dtype,
                pin_memory=self.device.type == "cuda",
            )
        numbered = enumerate(split_rows(rows, batch_size))
        for slot, chosen in work_ahead(self._fill, numbered):
            blocks = [buffer[: len(chosen)].to(self.device, non_blocking=True) for buffer in self._buffers[slot]]
            if self.device.type == "cuda":
                self._copied[slot] = torch.cuda.current_stream(self.device).record_event()
            labels = torch.from_numpy(self.cache.labels[chosen]).to(self.device)
            yield Batch(blocks, labels, [self.cache.ids[row] for row in chosen])

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _fill(self, numbered: tuple[int, NDArray[np.int64]]) -> tuple[int, NDArray[np.int64]]:
        slot, rows = numbered[0] % SLOTS, numbered[1]
        if (copied := self._copied[slot]) is not None:
            copied.synchronize()  # the device must have taken what the slot held
        self._reader.read(rows, list(self._buffers[slot]))
        return slot, rows
