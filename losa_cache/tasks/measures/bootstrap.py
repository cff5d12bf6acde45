"""Confidence intervals by the bootstrap (Efron, 1979): the same figure on samples drawn again, with replacement."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVEL, DRAWS, SEED = 0.95, 1000, 0
AT_ONCE = 2**20
"""Values that lie in memory for the draws computed together."""


def draws(
    samples: int, *, groups: NDArray[np.int64] | None = None, count: int = DRAWS, seed: int = SEED, at_once: int = 1
) -> Iterator[Tensor]:
    """Draw samples with replacement, or whole groups of samples where there are groups.

    Args:
        samples: N, their number.
        groups: the number of each sample's group, from 0, ``(N,)``.
        count: of the draws.
        seed: of the draws, which do not depend on ``at_once``.
        at_once: draws in a part.

    Yields:
        how often each sample was drawn, float64 ``(at most at_once, N)``.
    """
    rng = np.random.default_rng(seed)
    units = samples if groups is None else int(groups.max()) + 1
    for start in range(0, count, at_once):
        part = min(at_once, count - start)
        drawn = rng.integers(units, size=(part, units)) + units * np.arange(part)[:, None]
        often = np.bincount(drawn.reshape(-1), minlength=part * units).reshape(part, units).astype(np.float64)
        yield torch.from_numpy(often if groups is None else often[:, groups])


def interval(
    figure: Callable[[Tensor], Tensor],
    samples: int,
    *,
    groups: NDArray[np.int64] | None = None,
    size: int = 1,
    count: int = DRAWS,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Give the percentile interval of a figure at 95 %.

    Draws in which the figure is not defined, such as those that miss a class, are left out. *Not from the paper.*

    Args:
        figure: of weights ``(B, N)`` to ``(B,)``.
        samples, groups, count, seed: as of :func:`draws`.
        size: values of each sample that the figure reads: decides how many draws are computed at a time.

    Returns:
        the lower and the upper end; ``None`` if the figure is defined in no draw.
    """
    at_once = max(1, AT_ONCE // (samples * size))
    parts = [figure(weights) for weights in draws(samples, groups=groups, count=count, seed=seed, at_once=at_once)]
    values = torch.cat(parts).double().cpu()
    values = values[values.isfinite()]
    if not len(values):
        return None
    low, high = torch.quantile(values, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return low, high
