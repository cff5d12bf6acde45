"""Memoise the plain batches of an expensive source: each is computed once and kept in host memory."""

from collections.abc import Iterator, Sequence

import torch

from losa_cache.sidenet.operand import dense
from losa_cache.train.batch import Batch, Request, Source
from losa_cache.train.bottleneck import Bandwidth


class MemoisedSource:
    """Keep the batches of the first evaluation, and give them again for the same requests.

    Args:
        source: used once. Its owner closes it.
        device: device of the batches.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self._source, self._device = source, device
        self._kept: list[Batch] = []

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request. The requests of every call must be the same, and plain."""
        if len(self._kept) == len(requests):
            for batch in self._kept:
                yield _moved(batch, self._device)
            return
        self._kept.clear()
        for batch in self._source.batches(requests):
            self._kept.append(_moved(batch, torch.device("cpu")))
            yield batch

    def spent(self) -> dict[str, float]:
        """Give the seconds of the source."""
        return self._source.spent()

    def bandwidth(self) -> Bandwidth | None:
        """Give the bandwidth of the source."""
        return self._source.bandwidth()

    def close(self) -> None:
        """Free the memory."""
        self._kept.clear()


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch([block.to(device) for block in dense(batch.blocks)], batch.labels.to(device), batch.ids)
