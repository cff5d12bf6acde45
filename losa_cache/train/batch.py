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
    """A batch that the training loop requests.

    Attributes:
        samples: their numbers, int64 ``(batch,)``.
        epoch: number of the pass over the samples, from 0; it decides views and augmentation. ``None`` requests plain
            images, or one clip of videos.
        step: number of the step in the whole run, from 0; it decides mixup and erasing.
        view: number of the clip, if ``epoch`` is ``None``.
        repeats: how often the epoch drew each sample before, int64 ``(batch,)``; ``None`` if it draws no sample twice.
            Every draw of a sample shows another view or augmentation of it.
    """

    samples: NDArray[np.int64]
    epoch: int | None = None
    step: int = 0
    view: int = 0
    repeats: NDArray[np.int64] | None = None

    def part(self, start: int, stop: int) -> "Request":
        """Give the request for the samples from ``start`` to ``stop`` only."""
        repeats = None if self.repeats is None else self.repeats[start:stop]
        return replace(self, samples=self.samples[start:stop], repeats=repeats)


@dataclass(frozen=True)
class Batch:
    """What the training loop receives.

    Attributes:
        blocks: the k inputs of the side network, first to last, then y_0 if it is not the last of them
            (``losa_cache.points.input_points``), each ``(batch, tokens, width)`` on the training device. They are valid
            until the next batch is requested: sources reuse their memory.
        labels: on the training device, int64 ``(batch,)``, or float32 ``(batch, classes)`` if images are mixed; for
            another task than classification its targets, ``(batch, ...)``.
        ids: sample ids.
        fixed: whether the blocks' memory stays valid as long as the source is open.
    """

    blocks: Sequence[Block]
    labels: Tensor
    ids: list[str]
    fixed: bool = False


class Source(Protocol):
    """A source of batches: a cache, the backbone itself, or both."""

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request, in order."""
        ...

    def spent(self) -> dict[str, float]:
        """Give the seconds that the loop waited for each part of the source since the last call, and what was read
        (``losa_cache.train.bottleneck``).
        """
        ...

    def bandwidth(self) -> Bandwidth | None:
        """Measure once the largest possible speed of its reads; ``None`` if it reads no cache."""
        ...

    def close(self) -> None:
        """Stop threads and processes."""
        ...
