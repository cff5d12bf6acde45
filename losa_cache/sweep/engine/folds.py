"""Cross-validation: how many splits there are, and how trials of several splits share their batches. Pure.

*Not from the paper.* Where one held-out part is too small to choose on, each setting is trained once for each of
several parts, which have no sample in common, and judged by all of them together: every sample by the trial that held
it out. Trials of all splits take the same batches; what a trial holds out has no weight in its loss, so it trains
exactly as it would on its own samples of each batch. One pass over the cache feeds them all. Side networks in which the
samples of a batch see each other (``SideSpec.mixes_samples``) are trained split by split: statistics over a batch would
tell a trial about what it holds out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.tasks.base import ENOUGH
from losa_cache.train.batch import Request


@dataclass(frozen=True)
class HeldOut:
    """What each trial holds out of samples that all of them read.

    Attributes:
        parts: of every sample of the cache, by number, the part that it is in, int64; -1: it is never held out.
        folds: the part that each trial holds out.
    """

    parts: NDArray[np.int64]
    folds: Sequence[int]

    def batches(self, requests: Sequence[Request], device: torch.device) -> Sequence[Tensor]:
        """Give the parts of the samples of each batch, brought to the device at once."""
        return torch.from_numpy(self._drawn(requests)).to(device).split([len(own.samples) for own in requests])

    def count(self, requests: Sequence[Request]) -> list[int]:
        """Count the draws of an epoch that are each trial's own."""
        drawn = self._drawn(requests)
        return [int((drawn != fold).sum()) for fold in self.folds]

    def whose(self, samples: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Say for each trial which of these samples it holds out."""
        return [self.parts[samples] == fold for fold in self.folds]

    def keep(self, trials: Sequence[int]) -> "HeldOut":
        """Forget all trials but these."""
        return HeldOut(self.parts, [self.folds[trial] for trial in trials])

    def _drawn(self, requests: Sequence[Request]) -> NDArray[np.int64]:
        return self.parts[np.concatenate([request.samples for request in requests])]


def count_folds(samples: int, fraction: float) -> int:
    """Say in how many splits a setting is trained: as many as judge by ``ENOUGH`` samples, if there are so many.

    Args:
        samples: in all.
        fraction: of them that a split holds out, above 0.
    """
    held = max(1, round(samples * fraction))
    return max(1, min(math.ceil(ENOUGH / held), round(1 / fraction)))


def parts_of(held_out: Sequence[NDArray[np.int64]], samples: int) -> NDArray[np.int64]:
    """Number every sample of a cache by the split that holds it out; -1: none does."""
    parts = np.full(samples, -1)
    for fold, held in enumerate(held_out):
        parts[held] = fold
    return parts
