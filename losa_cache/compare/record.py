"""The results of a comparison: methods, their accuracies with intervals, and pairs of them on the same images. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.compare.significance import paired, t_interval, wilson


@dataclass(frozen=True)
class Contender:
    """A method in a comparison: one setting with its seeds.

    Attributes:
        name: its name in tables.
        runs: directories, one for each seed; for a probe its folder.
        seeds: seeds of the runs; empty for a probe.
        correct: whether each run classifies each test image correctly, ``(seeds, images)``.
        images: digest of the test images.
        tested_on: the test cache.
        parameters: trained ones, ``side`` and ``classifier``.
        train_seconds: duration of the training, the mean over seeds; ``None`` if it was not recorded.
        extract_seconds: duration of the extraction of the cache that it was trained from, 0 if it was trained online;
            ``None`` if it is not known.
        peak_gb: peak memory of the training in 1e9 bytes, the largest over seeds; ``None`` if it was not recorded.
    """

    name: str
    runs: list[str]
    seeds: list[int]
    correct: NDArray[np.bool_]
    images: str
    tested_on: str
    parameters: dict[str, int]
    train_seconds: float | None = None
    extract_seconds: float | None = None
    peak_gb: float | None = None


@dataclass(frozen=True)
class Method:
    """One setting in figures; accuracies in percent.

    Attributes:
        name, runs, seeds, tested_on, parameters, train_seconds, extract_seconds, peak_gb: as of :class:`Contender`.
        top1: the mean over seeds.
        low, high: its interval at 95 %.
        interval: how it was made: ``Wilson over images``, or ``Student's t over N seeds``.
        each: the top-1 of each seed.
    """

    name: str
    runs: list[str]
    seeds: list[int]
    tested_on: str
    parameters: dict[str, int]
    train_seconds: float | None
    extract_seconds: float | None
    peak_gb: float | None
    top1: float
    low: float
    high: float
    interval: str
    each: list[float]


@dataclass(frozen=True)
class Pair:
    """Two methods on the same images.

    Attributes:
        first, second: their names.
        difference: top-1 of the first minus that of the second, in points.
        standard_error: standard error of the difference over images, in points.
        p: two-sided p-value of this pair alone.
        test: name of the test.
    """

    first: str
    second: str
    difference: float
    standard_error: float
    p: float
    test: str


@dataclass(frozen=True)
class Comparison:
    """All methods and all pairs. All of it is JSON.

    Attributes:
        title: the data set, its split and the backbone.
        samples: test images.
        methods: sorted by their mean, the best first; if means are equal, by their parameters.
        pairs: each with the better one first.
        notes: sentences on how to read the figures.
    """

    title: str
    samples: int
    methods: list[Method]
    pairs: list[Pair]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON."""
        return asdict(self)

    def against_best(self, method: Method) -> Pair | None:
        """Give the pair of the best method and this one; ``None`` for the best itself."""
        best = self.methods[0].name
        return next((pair for pair in self.pairs if (pair.first, pair.second) == (best, method.name)), None)


def comparison(title: str, contenders: Sequence[Contender]) -> Comparison:
    """Compute all figures.

    Args:
        title: of the whole.
        contenders: at least one, all with the same images, under names that differ.
    """
    order = sorted(contenders, key=lambda one: (-one.correct.mean(), sum(one.parameters.values())))
    methods = [_method(one) for one in order]
    pairs = [_pair(first, second) for first, second in combinations(order, 2)]
    return Comparison(title, order[0].correct.shape[1], methods, pairs, _notes(methods))


def _method(one: Contender) -> Method:
    each = one.correct.mean(1)
    if len(each) > 1:
        found, interval = t_interval(each.tolist()), f"Student's t over {len(each)} seeds"
    else:
        found, interval = wilson(int(one.correct.sum()), one.correct.size), "Wilson over images"
    return Method(
        one.name,
        one.runs,
        one.seeds,
        one.tested_on,
        one.parameters,
        one.train_seconds,
        one.extract_seconds,
        one.peak_gb,
        top1=100 * found.value,
        low=max(0.0, 100 * found.low),
        high=min(100.0, 100 * found.high),
        interval=interval,
        each=[100 * float(value) for value in each],
    )


def _pair(first: Contender, second: Contender) -> Pair:
    found = paired(first.correct, second.correct)
    return Pair(first.name, second.name, 100 * found.value, 100 * found.standard_error, found.p, found.test)


def _notes(methods: Sequence[Method]) -> list[str]:
    notes = []
    if any(len(method.each) > 1 for method in methods):
        notes.append(
            "Intervals over seeds say how far another seed would move a method on these images; other test images "
            "would move it further."
        )
    if len(methods) > 1:
        notes.append(
            "Differences and p are of the same test images, each pair by itself: of twenty pairs of equally good "
            "methods one falls below p = 0.05 by chance."
        )
        notes.append("The method that is best here was found on the test images: choose by held-out images instead.")
    return notes
