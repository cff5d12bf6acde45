"""The contract between a source of activations and the training loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.sidenet.operand import Block
from losa_cache.train.bottleneck import Bandwidth


@dataclass(frozen=True)
class Request:
    """A batch that the loop asks for.

    Attributes:
        samples: their numbers, int64 ``(batch,)``.
        epoch: which pass over the samples, from 0: it decides views and augmentation. ``None`` asks for plain images,
            or for one clip of videos.
        step: which step of the whole run, from 0: it decides mixup and erasing.
        view: which clip, where there is no epoch.
        repeats: how often the epoch has drawn each of them before, int64 ``(batch,)``; ``None``: it draws none twice.
            Every draw of a sample shows another view or augmentation of it.
    """

    samples: NDArray[np.int64]
    epoch: int | None = None
    step: int = 0
    view: int = 0
    repeats: NDArray[np.int64] | None = None

    def part(self, start: int, stop: int) -> "Request":
        """Ask for the samples from ``start`` to ``stop`` only."""
        repeats = None if self.repeats is None else self.repeats[start:stop]
        return replace(self, samples=self.samples[start:stop], repeats=repeats)


@dataclass(frozen=True)
class Batch:
    """What the loop sees.

    Attributes:
        blocks: the k inputs of the side network, first to last, and y_0 behind them where it is not the last of them
            (``losa_cache.points.input_points``), each ``(batch, tokens, width)`` on the training device. They are
            valid until the next batch is asked for: sources reuse their memory.
        labels: on the training device, int64 ``(batch,)``, or float32 ``(batch, classes)`` shares where they are mixed;
            of another task than classification its targets, ``(batch, ...)``.
        ids: sample ids.
        fixed: the blocks' tensors belong to the source for its whole life: memory at these addresses stays valid.
    """

    blocks: Sequence[Block]
    labels: Tensor
    ids: list[str]
    fixed: bool = False


class Source(Protocol):
    """Where batches come from: a cache, the backbone itself, or both."""

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request, in order."""
        ...

    def spent(self) -> dict[str, float]:
        """Say how many seconds the loop waited for each part of the source since this was last asked, and what was read
        (``losa_cache.train.bottleneck``).
        """
        ...

    def bandwidth(self) -> Bandwidth | None:
        """Measure, once, what its reads could reach; ``None`` where it reads no cache."""
        ...

    def close(self) -> None:
        """Stop threads and processes."""
        ...
