"""Intervals and paired tests of accuracies: plain arithmetic, in float64 and whole numbers. Pure.

*Not from the paper*, which gives neither intervals nor tests.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence of every interval."""
ROUNDING = 1e-12
"""Shares of seeds that lie nearer to each other are equal."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, in the same unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference of two methods on the same images.

    Attributes:
        value: in shares of the images, -1 to 1.
        standard_error: standard error of the value over images.
        p: probability of a difference at least as large if the two were equally good (two-sided).
        test: name of the test.
    """

    value: float
    standard_error: float
    p: float
    test: str


def wilson(hits: int, samples: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share (Wilson, 1927), which stays within 0 and 1 and is not empty at either.

    Args:
        hits: images classified correctly.
        samples: images, at least 1.
        level: confidence.
    """
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    share, weight = hits / samples, z * z / samples
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / samples + weight / (4 * samples)) / (1 + weight)
    return Interval(share, min(share, middle - half), max(share, middle + half))


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of a mean, from at least 2 values."""
    mean, count = math.fsum(values) / len(values), len(values)
    half = t_quantile(level, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """Compare two methods by the same images.

    With one run each, this is McNemar's exact test, the binomial test of the images that only one of the two classifies
    correctly. With several seeds of a method it is Student's t test of the difference, image by image, between the
    shares of seeds that classify it correctly. The standard error is over images; it does not include the variation
    between sets of seeds. If the difference is the same for all images, t has no scale, and only the signs are tested.

    Args:
        first, second: whether each run classifies each image correctly, ``(seeds, images)``, at least 2 images.
    """
    gaps = first.mean(0) - second.mean(0)
    value, error = float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    only_first, only_second = int((gaps > 0).sum()), int((gaps < 0).sum())
    if len(first) == len(second) == 1:
        return Difference(value, error, mcnemar(only_first, only_second), "McNemar's exact test")
    if np.ptp(gaps) < ROUNDING:
        return Difference(value, 0.0, mcnemar(only_first, only_second), "sign test over images")
    return Difference(value, error, 1 - t_within(abs(value) / error, len(gaps) - 1), "paired t test over images")


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the exact two-sided p of McNemar's test.

    Args:
        only_first, only_second: images that only this one of the two methods classifies correctly.
    """
    split = only_first + only_second
    term = tail = 1  # binomial coefficients, as whole numbers: no image is rounded away
    for number in range(min(only_first, only_second)):
        term = term * (split - number) // (number + 1)
        tail += term
    return min(1.0, 2 * tail / 2**split)


def t_within(t: float, freedom: int) -> float:
    """Probability that Student's t of so many degrees of freedom lies within -t and t.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: finite sums for whole degrees.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(level: float, freedom: int) -> float:
    """Give the t for which :func:`t_within` is this probability, above 0 and below 1, up to rounding."""
    low, high = 0.0, math.pi / 2  # angles: t is finite between them
    for _ in range(60):
        middle = (low + high) / 2
        inside = t_within(math.sqrt(freedom) * math.tan(middle), freedom) < level
        low, high = (middle, high) if inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
