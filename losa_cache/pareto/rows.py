"""What a comparison found of each method, in figures. Pure."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from losa_cache.pareto.entries import Entry, named_in
from losa_cache.pareto.plan import (
    CACHE,
    chosen_rate,
    name_of_choice,
    name_of_cost,
    name_of_run,
    name_of_test,
    rates_of,
)
from losa_cache.pareto.record import Study, Work
from losa_cache.sweep.engine.record import pareto_front

CACHED, SIDE, INSIDE = "from a cache", "side network, online", "inside the backbone"
"""How a method is trained."""
TRIALS = 16
"""Trainings, as of a search, for which the time is told beside that of one."""


@dataclass(frozen=True)
class Row:
    """A method in figures. What was not measured is ``None``.

    Attributes:
        name: as the user named it.
        kind: one of :data:`CACHED`, :data:`SIDE` and :data:`INSIDE`.
        parameters: trained ones, the classifier among them.
        classifier: those of the classifier.
        images_per_second: of training steps, and what they wait for.
        train_seconds: of one training, from the start of its process to its end: the mean over seeds.
        extract_seconds: of the cache that it is trained from; 0: it is trained from none.
        peak_gb: peak memory in 1e9 bytes: of the training or, of a method from a cache, of the extraction where that
            takes more.
        gmacs: 1e9 multiply-accumulates of one sample at inference, the backbone's among them.
        joules: of one training, without the extraction.
        top1: of each seed, in percent, on the test split.
        rate: the learning rate.
        edge: whether that is the least or the largest that was tried.
        choices: trainings by which the rate was chosen.
        choice_seconds: what these took.
        error: why there is no result, in a sentence.
    """

    name: str
    kind: str
    parameters: int | None = None
    classifier: int | None = None
    images_per_second: float | None = None
    train_seconds: float | None = None
    extract_seconds: float | None = 0.0
    peak_gb: float | None = None
    gmacs: float | None = None
    joules: float | None = None
    top1: tuple[float, ...] = ()
    rate: float | None = None
    edge: bool = False
    choices: int = 0
    choice_seconds: float | None = None
    error: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean top-1 over the seeds."""
        return statistics.fmean(self.top1) if self.top1 else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, of which there must be two."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    def seconds(self, trainings: int = 1) -> float | None:
        """Seconds in all of so many trainings one after the other, and of the extraction, which is needed once."""
        if self.train_seconds is None or self.extract_seconds is None:
            return None
        return self.extract_seconds + trainings * self.train_seconds

    def to_json(self) -> dict[str, Any]:
        """Give all figures as JSON."""
        told = {"top1_mean": self.mean, "top1_deviation": self.deviation}
        told |= {"seconds_1": self.seconds(), f"seconds_{TRIALS}": self.seconds(TRIALS)}
        return asdict(self) | {"top1": list(self.top1)} | told


@dataclass(frozen=True)
class Cost:
    """A cost against which accuracy is drawn, of which less is better.

    Attributes:
        name: of the figure's axis.
        short: in a table.
        of: gives it of a method.
    """

    name: str
    short: str
    of: Callable[[Row], float | None]


COSTS = (
    Cost("trained parameters", "parameters", lambda row: row.parameters),
    Cost("training time, with the extraction (s)", "time", lambda row: row.seconds()),
    Cost("peak memory (GB)", "memory", lambda row: row.peak_gb),
    Cost("inference (GMACs a sample)", "inference", lambda row: row.gmacs),
)
"""The costs of the paper's Fig. 4."""


def rows(study: Study) -> list[Row]:
    """Give the figures of each method as far as they are known, in the order of the user."""
    row = _cost_row if study.shape_only else _row
    return [row(study, entry) for entry in named_in(study.methods)]


def front(found: Sequence[Row], cost: Cost) -> list[Row]:
    """Give the methods that no other beats in accuracy and in a cost, the cheapest first."""
    known = [(row, x, row.mean) for row in found if (x := cost.of(row)) is not None and row.mean is not None]
    points = [(x, mean) for _, x, mean in known if mean is not None]
    return [known[place][0] for place in pareto_front(points)]


def on_any_front(found: Sequence[Row]) -> dict[str, list[str]]:
    """Name for each method the costs on whose front it lies."""
    fronts = {cost.short: [row.name for row in front(found, cost)] for cost in COSTS}
    return {row.name: [name for name, members in fronts.items() if row.name in members] for row in found}


def kind_of(entry: Entry) -> str:
    """Say how a method is trained."""
    return CACHED if entry.cached else INSIDE if entry.side is None else SIDE


def _cost_row(study: Study, entry: Entry) -> Row:
    work = study.work(name_of_cost(entry))
    measured = work.result or {}
    return Row(entry.text, kind_of(entry), error=work.error, extract_seconds=None, **measured)


def _row(study: Study, entry: Entry) -> Row:
    rate, known = chosen_rate(study, entry), rates_of(study, entry)
    choices = [study.work(name_of_choice(entry, own)) for own in known] if len(known) > 1 else []
    tried = [own.whole_seconds for own in choices if own.over]
    row = Row(
        entry.text,
        kind_of(entry),
        rate=rate,
        edge=len(known) > 1 and rate in (known[0], known[-1]),
        choices=len(tried),
        choice_seconds=_sum(tried),
    )
    if rate is None:
        return replace(row, error=_first_error(choices))
    names = [name_of_run(entry, rate, seed) for seed in range(study.options["seeds"])]
    works, tests = [study.work(name) for name in names], [study.work(name_of_test(name)) for name in names]
    row = replace(row, error=_first_error([*works, *tests]))
    figures = [work.result for work in works if work.result is not None]
    if not figures:
        return row
    timed = [work.whole_seconds for work in works if work.result is not None and work.whole_seconds is not None]
    extraction = study.work(CACHE) if entry.cached else None
    peaks = [one["peak_gb"] for one in [*figures, (extraction and extraction.result) or {}] if one.get("peak_gb")]
    parameters, macs = figures[0]["parameters"], figures[0]["macs"]
    return replace(
        row,
        parameters=sum(parameters.values()),
        classifier=parameters["classifier"],
        images_per_second=_median([one["images_per_second"] for one in figures]),
        train_seconds=statistics.fmean(timed) if timed else _median([one["train_seconds"] for one in figures]),
        extract_seconds=0.0 if extraction is None else extraction.whole_seconds,
        peak_gb=max(peaks, default=None),
        gmacs=None if macs is None else macs / 1e9,
        joules=_median([one["joules"] for one in figures]),
        top1=tuple(test.result["top1"] for test in tests if test.result is not None),
    )


def _first_error(works: Sequence[Work]) -> str | None:
    return next((work.error for work in works if work.error is not None), None)


def _sum(values: Sequence[float | None]) -> float | None:
    """Sum what is known; ``None`` if a part is not."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
