"""Cross-validation: the number of splits, and how trials of several splits share their batches. Pure.

*Not from the paper.* If one held-out part is too small for a choice, each setting is trained once for each of several
parts. The parts have no sample in common, and every sample is evaluated by the trial that held it out. Trials of all
splits take the same batches. The samples that a trial holds out have no weight in its loss, so it trains exactly as it
would on its own samples of each batch. One pass over the cache serves them all. Side networks in which the
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
    """The samples that each trial holds out, while all trials read the same batches.

    Attributes:
        parts: int64, for every sample of the cache the number of its part; -1 if it is never held out.
        folds: the part that each trial holds out.
    """

    parts: NDArray[np.int64]
    folds: Sequence[int]

    def batches(self, requests: Sequence[Request], device: torch.device) -> Sequence[Tensor]:
        """Give the parts of the samples of each batch; all are copied to the device at once."""
        return torch.from_numpy(self._drawn(requests)).to(device).split([len(own.samples) for own in requests])

    def count(self, requests: Sequence[Request]) -> list[int]:
        """Count for each trial the draws of an epoch that it trains on."""
        drawn = self._drawn(requests)
        return [int((drawn != fold).sum()) for fold in self.folds]

    def whose(self, samples: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Mark for each trial those of these samples that it holds out."""
        return [self.parts[samples] == fold for fold in self.folds]

    def keep(self, trials: Sequence[int]) -> "HeldOut":
        """Forget all trials but these."""
        return HeldOut(self.parts, [self.folds[trial] for trial in trials])

    def _drawn(self, requests: Sequence[Request]) -> NDArray[np.int64]:
        return self.parts[np.concatenate([request.samples for request in requests])]


def count_folds(samples: int, fraction: float) -> int:
    """Give the number of splits: so many that ``ENOUGH`` samples are held out in all, if there are so many.

    Args:
        samples: number of all samples.
        fraction: share that a split holds out, above 0.
    """
    held = max(1, round(samples * fraction))
    return max(1, min(math.ceil(ENOUGH / held), round(1 / fraction)))


def parts_of(held_out: Sequence[NDArray[np.int64]], samples: int) -> NDArray[np.int64]:
    """Number every sample of a cache by the split that holds it out; -1: none does."""
    parts = np.full(samples, -1)
    for fold, held in enumerate(held_out):
        parts[held] = fold
    return parts
