"""Batches from a cache: the next one is read while this one trains."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.ahead import work_ahead
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.store import ActivationCache
from losa_cache.sidenet.operand import Block, Scaled
from losa_cache.train.batch import Batch, Request
from losa_cache.train.sampler import rows_of, view_starts
from losa_cache.train.stopwatch import Stopwatch

SLOTS = 2


class CachedSource:
    """Read batches into two preallocated (pinned, for a GPU) buffers in turn, by threads.

    Args:
        cache: to read.
        points: what of it, in the order of ``Batch.blocks``.
        device: where the batches go.
        seed: of the choice among several views.
        fold: hand on int8 codes as they are, all but y_0.
    """

    def __init__(
        self,
        cache: ActivationCache,
        points: Sequence[str],
        device: torch.device,
        *,
        seed: int = 0,
        fold: bool = False,
    ) -> None:
        self.cache, self.device, self._fold = cache, device, fold
        views = cache.manifest.views
        self._starts = view_starts(len(cache.ids) // views, views=views, seed=seed)
        self._watch = Stopwatch(device)
        self._reader = BlockReader(cache, points)
        self._encoding = cache.encoding().select(self._reader.positions).to(device)
        self._shape = (len(points), cache.layout.tokens, cache.layout.columns)
        self._buffers = torch.empty(0)
        self._copied: list[torch.cuda.Event | None] = [None] * SLOTS

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request: one view of each of its samples."""
        points, tokens, columns = self._shape
        longest = max((len(request.samples) for request in requests), default=0)
        if self._buffers.ndim == 1 or self._buffers.shape[2] < longest:
            with torch.inference_mode(False):  # an evaluation may ask first, or for more, and training reads them then
                self._buffers = torch.empty(
                    (SLOTS, points, longest, tokens, columns),
                    dtype=self.cache.precision.stored_dtype,
                    pin_memory=self.device.type == "cuda",
                )
        for slot, chosen in self._watch.waiting("read", work_ahead(self._fill, enumerate(requests))):
            stored = [buffer[: len(chosen)].to(self.device, non_blocking=True) for buffer in self._buffers[slot]]
            if self.device.type == "cuda":
                self._copied[slot] = torch.cuda.current_stream(self.device).record_event()
            with self._watch.computing("unpack"):
                blocks = [self._unpack(at, block) for at, block in enumerate(stored)]
            labels = torch.from_numpy(self.cache.labels[chosen]).to(self.device)
            yield Batch(blocks, labels, [self.cache.ids[row] for row in chosen])

    def spent(self) -> dict[str, float]:
        """Say how many seconds the loop waited for reads and decoding."""
        return self._watch.take()

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _unpack(self, at: int, stored: Tensor) -> Block:
        codes = self._encoding.codes(at, stored) if self._fold and at < self._shape[0] - 1 else None
        if codes is None:
            return self._encoding.decode(at, stored)
        return Scaled(*codes, dtype=self._encoding.precision.dtype)

    def _fill(self, numbered: tuple[int, Request]) -> tuple[int, NDArray[np.int64]]:
        slot, request = numbered[0] % SLOTS, numbered[1]
        rows = rows_of(request, self._starts, views=self.cache.manifest.views)
        if (copied := self._copied[slot]) is not None:
            copied.synchronize()  # the device must have taken what the slot held
        self._reader.read(rows, list(self._buffers[slot]))
        return slot, rows
