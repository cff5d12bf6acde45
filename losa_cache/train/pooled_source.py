"""Pooled rows of all samples, read and pooled once and then kept: a batch of them is a copy of a few kilobytes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.ids import Ids
from losa_cache.sidenet.operand import dense
from losa_cache.sidenet.pooled import Pooling
from losa_cache.train.batch import Batch, Request, Source
from losa_cache.train.bottleneck import Bandwidth
from losa_cache.train.sampler import requests_in_order, rows_of, view_starts

AT_ONCE = 64  # samples


class PooledSource:
    """What a source of whole blocks gives, each pooled to its rows ``(batch, m, width)``.

    The first request has all samples read, in their order: so no number depends on what is asked for first.

    Args:
        source: of a cache.
        pooling: of its trunk.
        samples: numbers of all that will be asked for.
        ids: of all rows of the cache.
        views, seed: as of ``CachedSource``.
    """

    def __init__(
        self, source: Source, pooling: Pooling, samples: NDArray[np.int64], *, ids: Ids, views: int, seed: int
    ) -> None:
        self._source, self._pooling, self._views = source, pooling, views
        self._samples = np.sort(samples)
        self._ids, self._starts = ids, view_starts(len(ids) // views, views=views, seed=seed)
        self._kept: tuple[list[Tensor], Tensor] | None = None

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request."""
        if self._kept is None:
            self._kept = self._read()
        blocks, labels = self._kept
        for request in requests:
            rows = rows_of(request, self._starts, views=self._views)
            index = torch.from_numpy(self._places(rows)).to(labels.device)
            yield Batch([block[index] for block in blocks], labels[index], list(self._ids.take(rows)))

    def spent(self) -> dict[str, float]:
        """Say what the source spent."""
        return self._source.spent()

    def bandwidth(self) -> Bandwidth | None:
        """Give the source's."""
        return self._source.bandwidth()

    def close(self) -> None:
        """Forget what is kept, and close the source."""
        self._kept = None
        self._source.close()

    def _read(self) -> tuple[list[Tensor], Tensor]:
        """Pool every view of every sample: views of a sample lie beside each other."""
        total = len(self._samples) * self._views
        blocks: list[Tensor] = []
        labels = torch.empty(0)
        requests = requests_in_order(self._samples, AT_ONCE, clips=self._views)
        for request, batch in zip(requests, self._source.batches(requests), strict=True):
            pooled = [self._pooling(block) for block in dense(batch.blocks)]
            if not blocks:
                blocks = [rows.new_empty(total, *rows.shape[1:]) for rows in pooled]
                labels = batch.labels.new_empty(total, *batch.labels.shape[1:])
            places = self._places(rows_of(request, self._starts, views=self._views))
            index = torch.from_numpy(places).to(labels.device)
            labels[index] = batch.labels
            for kept, rows in zip(blocks, pooled, strict=True):
                kept[index] = rows
        return blocks, labels

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Say where rows of the cache are kept."""
        samples, view = np.divmod(rows, self._views)
        return np.searchsorted(self._samples, samples) * self._views + view
