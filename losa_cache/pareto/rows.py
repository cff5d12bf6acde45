"""What a comparison found of each method, in figures. Pure."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from msgspec import structs

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
from losa_cache.pareto.record import Accuracy, Extraction, NoiseCost, Study, Training, Work
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
        train_seconds: of one training, from the start of its process to its end: the mean over the seeds whose training
            was not interrupted.
        epoch_seconds: of the steps of its epochs alone.
        trained, timed: trainings with a seed that are done, and how many of them were not interrupted.
        extract_seconds: of the cache that it is trained from; 0: it is trained from none.
        peak_gb: peak memory in 1e9 bytes: of the training or, of a method from a cache, of the extraction where that
            takes more.
        gmacs: 1e9 multiply-accumulates of one sample at inference, the backbone's among them.
        joules: of one training that was not interrupted, without the extraction.
        top1: of each seed, in percent, on the test split.
        rate: the learning rate.
        edge: whether that is the least or the largest that was tried.
        choices, choices_timed: trainings by which the rate was chosen, and how many of them were not interrupted.
        choice_seconds: what the latter took.
        failures: why rates were passed over, in a sentence each.
        error: why a result is missing, in a sentence.
    """

    name: str
    kind: str
    parameters: int | None = None
    classifier: int | None = None
    images_per_second: float | None = None
    train_seconds: float | None = None
    epoch_seconds: float | None = None
    trained: int = 0
    timed: int = 0
    extract_seconds: float | None = 0.0
    peak_gb: float | None = None
    gmacs: float | None = None
    joules: float | None = None
    top1: tuple[float, ...] = ()
    rate: float | None = None
    edge: bool = False
    choices: int = 0
    choices_timed: int = 0
    choice_seconds: float | None = None
    failures: tuple[str, ...] = ()
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
        return asdict(self) | told


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
    work = study.work(name := name_of_cost(entry))
    cost = study.result(name, NoiseCost)
    measured = {} if cost is None else structs.asdict(cost)
    return Row(entry.text, kind_of(entry), error=work.error, extract_seconds=None, **measured)


def _row(study: Study, entry: Entry) -> Row:
    rate = chosen_rate(study, entry)
    row = replace(_choice(study, entry), rate=rate)
    if rate is None:
        return replace(row, error=row.failures[0] if row.failures else None)
    names = [name_of_run(entry, rate, seed) for seed in range(study.options["seeds"])]
    works = [work for name in names for work in (study.work(name), study.work(name_of_test(name)))]
    row = replace(row, error=next((work.error for work in works if work.error is not None), None))
    trainings = [(own, study.work(name).seconds) for name in names if (own := study.result(name, Training)) is not None]
    if not trainings:
        return row
    figures = [own for own, _ in trainings]
    whole = [(own, seconds) for own, seconds in trainings if seconds is not None]
    extraction = study.result(CACHE, Extraction) if entry.cached else None
    peaks = [own.peak_gb for own in (*figures, extraction) if own is not None and own.peak_gb is not None]
    macs = figures[0].macs
    return replace(
        row,
        parameters=sum(figures[0].parameters.values()),
        classifier=figures[0].parameters["classifier"],
        images_per_second=statistics.median(own.images_per_second for own in figures),
        train_seconds=statistics.fmean(seconds for _, seconds in whole) if whole else None,
        epoch_seconds=_median([own.epoch_seconds for own in figures]),
        trained=len(figures),
        timed=len(whole),
        extract_seconds=study.work(CACHE).seconds if entry.cached else 0.0,
        peak_gb=max(peaks),
        gmacs=None if macs is None else macs / 1e9,
        joules=_median([own.joules for own, _ in whole]),
        top1=tuple(test.top1 for name in names if (test := study.result(name_of_test(name), Accuracy)) is not None),
    )


def _choice(study: Study, entry: Entry) -> Row:
    """Give what the choice of a method's rate took."""
    row, known, rate = Row(entry.text, kind_of(entry)), rates_of(study, entry), chosen_rate(study, entry)
    if len(known) == 1:
        return row
    works = {own: study.work(name_of_choice(entry, own)) for own in known}
    done = [work.seconds for work in works.values() if work.result is not None]
    seconds = [own for own in done if own is not None]
    failures = [f"at rate {own:g}: {reason}" for own, work in works.items() if (reason := _passed_over(work))]
    return replace(
        row,
        edge=rate in (known[0], known[-1]),
        choices=len(done),
        choices_timed=len(seconds),
        choice_seconds=math.fsum(seconds) if seconds else None,
        failures=tuple(failures),
    )


def _passed_over(work: Work) -> str | None:
    """Say why a training of the choice cannot be chosen; ``None``: it can, or is not over."""
    if isinstance(work.result, Training) and work.result.held_out is None:
        return "its held-out loss was not finite: it diverged."
    return work.error


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
