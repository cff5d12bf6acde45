"""Batches of which a share is fresh from the backbone, and the rest from a cache."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from losa_cache.sidenet.operand import Block, dense
from losa_cache.train.batch import Batch, Request, Source
from losa_cache.train.bottleneck import Bandwidth


class MixedSource:
    """Join two sources batch by batch. An epoch's order is random, so the first samples of a batch are any.

    Args:
        fresh: the online source.
        cached: of the same samples, points and device.
        share: of every batch that is fresh, 0 ... 1, rounded to whole samples.
        soft: turns plain targets into what fresh ones are where they are mixed (:meth:`losa_cache.tasks.Task.soft`).
    """

    def __init__(self, fresh: Source, cached: Source, share: float, soft: Callable[[Tensor], Tensor]) -> None:
        self._fresh, self._cached, self._share, self._soft = fresh, cached, share, soft

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request: its fresh samples first. Plain ones come from the cache alone."""
        cuts = [0 if request.epoch is None else round(len(request.samples) * self._share) for request in requests]
        fresh = self._fresh.batches([r.part(0, cut) for r, cut in zip(requests, cuts, strict=True) if cut])
        cached = self._cached.batches(
            [r.part(c, len(r.samples)) for r, c in zip(requests, cuts, strict=True) if c < len(r.samples)]
        )
        for request, cut in zip(requests, cuts, strict=True):
            parts = ([next(fresh)] if cut else []) + ([next(cached)] if cut < len(request.samples) else [])
            yield parts[0] if len(parts) == 1 else self._joined(*parts)

    def spent(self) -> dict[str, float]:
        """Say how many seconds the loop waited for the parts of both."""
        fresh, cached = self._fresh.spent(), self._cached.spent()
        return {name: fresh.get(name, 0.0) + cached.get(name, 0.0) for name in fresh | cached}

    def bandwidth(self) -> Bandwidth | None:
        """Give that of the cache."""
        return self._cached.bandwidth()

    def close(self) -> None:
        """Close both."""
        self._fresh.close()
        self._cached.close()

    def _joined(self, fresh: Batch, cached: Batch) -> Batch:
        blocks: list[Block] = [torch.cat(p) for p in zip(dense(fresh.blocks), dense(cached.blocks), strict=True)]
        labels = cached.labels
        if fresh.labels.ndim > labels.ndim:  # shares
            labels = self._soft(labels)
        return Batch(blocks, torch.cat([fresh.labels, labels]), fresh.ids + cached.ids)
