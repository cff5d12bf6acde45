"""Batches in which a share of the samples is fresh from the backbone, and the rest comes from a cache."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from losa_cache.sidenet.operand import Block, dense
from losa_cache.train.batch import Batch, Request, Source
from losa_cache.train.bottleneck import Bandwidth


class MixedSource:
    """Join two sources batch by batch. The order of an epoch is random, so the first samples of a batch are a random
    choice.

    Args:
        fresh: the online source.
        cached: a source of the same samples and points on the same device.
        share: fresh share of every batch, 0 ... 1, rounded to whole samples.
        soft: converts plain targets to the form of mixed ones (:meth:`losa_cache.tasks.Task.soft`).
    """

    def __init__(self, fresh: Source, cached: Source, share: float, soft: Callable[[Tensor], Tensor]) -> None:
        self._fresh, self._cached, self._share, self._soft = fresh, cached, share, soft

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request, fresh samples first. Plain requests are served by the cache alone."""
        cuts = [0 if request.epoch is None else round(len(request.samples) * self._share) for request in requests]
        fresh = self._fresh.batches([r.part(0, cut) for r, cut in zip(requests, cuts, strict=True) if cut])
        cached = self._cached.batches(
            [r.part(c, len(r.samples)) for r, c in zip(requests, cuts, strict=True) if c < len(r.samples)]
        )
        for request, cut in zip(requests, cuts, strict=True):
            parts = ([next(fresh)] if cut else []) + ([next(cached)] if cut < len(request.samples) else [])
            yield parts[0] if len(parts) == 1 else self._joined(*parts)

    def spent(self) -> dict[str, float]:
        """Give the seconds that the loop waited for the parts of both."""
        fresh, cached = self._fresh.spent(), self._cached.spent()
        return {name: fresh.get(name, 0.0) + cached.get(name, 0.0) for name in fresh | cached}

    def bandwidth(self) -> Bandwidth | None:
        """Give the bandwidth of the cache."""
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
