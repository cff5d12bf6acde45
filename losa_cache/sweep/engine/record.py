"""The record of a sweep as plain data, and what follows from it: the Pareto front, the noise, the effects. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from losa_cache.outside import fit
from losa_cache.probe.record import LOGISTIC
from losa_cache.tasks import CLASSIFICATION, Metric, get_task

COMPLETE, PRUNED, FAILED, RUNNING = STATES = ("complete", "pruned", "failed", "running")
SEED = "seed"
TOP1 = "top1"
MANY = 8
"""Numbers of more distinct values than this are drawn as points along an axis."""


@dataclass(frozen=True)
class TrialRecord:
    """One training run of a sweep. All of it is JSON.

    Attributes:
        number: number of the trial within the sweep.
        state: ``complete``; ``pruned``, ended early because others were better; ``failed``; or ``running``.
        options: the swept hyper-parameters and the seed.
        parameters: number of trained parameters of the side network.
        curve: metrics by epoch, as in a run's ``metrics.jsonl``: ``epoch`` (from 1), ``train_loss``, ``val_loss``
            (nats), ``val_top1`` (percent), ``train_seconds``; of another task than classification its metrics.
        command: shell command that trains this trial alone.
        task: its task.
        chosen_by: metric by which trials are chosen; ``None``: the task's own.
        macs: multiply-accumulates that its adapter adds to one sample; ``None``: of an earlier version.
    """

    number: int
    state: str
    options: dict[str, Any]
    parameters: int
    curve: list[dict[str, Any]]
    command: str
    task: str = CLASSIFICATION
    chosen_by: str | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r} of trial {self.number} is none of {', '.join(STATES)}")

    @property
    def value(self) -> float | None:
        """The selection metric of the held-out samples after its last epoch; ``None`` without one."""
        return self.curve[-1].get(self.metric.held_out) if self.curve else None

    @property
    def metric(self) -> Metric:
        """The metric by which trials are chosen."""
        return get_task(self.task).choosing(self.chosen_by).selection

    @property
    def loss(self) -> float | None:
        """Validation loss after its last epoch; ``None`` without one."""
        return self.curve[-1].get("val_loss") if self.curve else None

    @property
    def seconds(self) -> float:
        """Duration of the training, without validation."""
        return math.fsum(epoch.get("train_seconds", 0.0) for epoch in self.curve)


@dataclass(frozen=True)
class ProbeLine:
    """A tuned regression on pooled rows.

    Attributes:
        reads: ``last layer`` or ``all layers``.
        rows: ``cls``, ``mean`` or ``both`` of each layer.
        c: chosen C as scikit-learn's, of features of standard deviation 1; of a ridge regression 1 / alpha.
        held_out_top1: in percent, on the held-out samples of the trials, after a fit to their training samples.
        test_top1: in percent, after a fit to all of these; ``None`` if it was not tested.
        others: values of another metric on the held-out samples, by its name, where trials are chosen by it.
        method: ``logistic regression``, which earlier versions have alone, or ``ridge regression``.
    """

    reads: str
    rows: str
    c: float
    held_out_top1: float
    test_top1: float | None = None
    others: dict[str, float] = field(default_factory=dict)
    method: str = LOGISTIC

    def held_out(self, metric: Metric) -> float | None:
        """Give the value of a metric on the held-out samples; ``None``: an earlier version did not compute it."""
        return self.held_out_top1 if metric.name == TOP1 else self.others.get(metric.name)

    @property
    def name(self) -> str:
        """Its name in reports."""
        return f"probe, {self.reads}"


@dataclass(frozen=True)
class ToBeat:
    """The probe of a sweep's cache. It takes seconds, so networks that are trained on all tokens should be better.

    Attributes:
        lines: the probes of the last layer and of all layers; empty if there is no probe.
        told: sentences on the samples of fit and validation, or on why there is no probe.
    """

    lines: list[ProbeLine]
    told: str

    def judged_by(self, metric: Metric) -> list[tuple[ProbeLine, float]]:
        """List the probes whose value of a metric on the held-out samples is known, with that value."""
        known = ((line, line.held_out(metric)) for line in self.lines)
        return [(line, value) for line, value in known if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class SweepRecord:
    """A sweep and all of its trials. All of it is JSON.

    Attributes:
        title: of the report.
        cache: path or URL of what the trials learned from.
        identity: of that cache.
        dataset: its data set.
        training_samples, validation_samples: number of samples that each trial was trained on and validated on.
        validated_on: which samples the latter are, in words.
        protocol: how the choice was made, in sentences.
        machine: the machine it ran on, in one line.
        started, finished: in seconds since 1970.
        trials: in any order.
        chosen: number of the selected trial; ``None``: none.
        test: of the chosen trial, once: ``on`` (path), ``split``, ``samples``, the task's metrics (``top1``, ``top5``
            in percent, ``loss`` in nats), and ``retrained``, whether it was trained again for it; ``None``: no test set
            was read.
        choice: how it was chosen, and how sure that is: the fields of
            :class:`losa_cache.sweep.engine.choice.Choice`, whose settings are named by a trial each, and ``sure``, in
            sentences; ``None``: of an earlier version.
        to_beat: the probe of the same cache; ``None``: of an earlier version.
        task: what the trials learn.
        chosen_by: metric by which trials are chosen; ``None``: the task's own.
    """

    title: str
    cache: str
    identity: str
    dataset: str
    training_samples: int
    validation_samples: int
    validated_on: str
    protocol: str
    machine: str
    started: float
    finished: float
    trials: list[TrialRecord]
    chosen: int | None = None
    test: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    to_beat: ToBeat | None = None
    task: str = CLASSIFICATION
    chosen_by: str | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        if self.chosen is not None and self.chosen_trial is None:
            raise ValueError(f"trial {self.chosen} was chosen, but is not among the trials")

    @property
    def metric(self) -> Metric:
        """The metric by which trials are chosen."""
        return get_task(self.task).choosing(self.chosen_by).selection

    @property
    def chosen_trial(self) -> TrialRecord | None:
        """The selected trial."""
        return next((trial for trial in self.trials if trial.number == self.chosen), None)

    def to_json(self) -> dict[str, Any]:
        """Give all fields as JSON; a task only where it is not classification, a metric only where one was named."""
        content = asdict(self)
        for part in (content, *content["trials"]):
            if part["task"] == CLASSIFICATION:
                del part["task"]
            if part["chosen_by"] is None:
                del part["chosen_by"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SweepRecord":
        """Read what :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError, UnreadableError: if it is something else.
        """
        trials, to_beat = [TrialRecord(**trial) for trial in content["trials"]], content.get("to_beat")
        return cls(**{**content, "trials": trials, "to_beat": None if to_beat is None else fit(to_beat, ToBeat)})


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone.

    Attributes:
        options: without the seed.
        trials: the complete ones, at least one.
        ended: how many more ended early, or have not ended.
    """

    options: dict[str, Any]
    trials: list[TrialRecord]
    ended: int

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.trials[0].parameters

    @property
    def by_seed(self) -> list[TrialRecord]:
        """One trial for each seed: the same seed again tells nothing new."""
        found: dict[str, TrialRecord] = {}
        for trial in self.trials:
            if trial.value is not None:
                found.setdefault(key(trial.options.get(SEED)), trial)
        return list(found.values())

    @property
    def values(self) -> list[float]:
        """The selection metric of the held-out samples, one for each seed."""
        return [trial.value for trial in self.by_seed if trial.value is not None]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return math.fsum(self.values) / len(self.values)

    @property
    def merit(self) -> float:
        """Merit of the mean: higher is better."""
        return self.trials[0].metric.merit(self.mean)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the values (over n - 1); ``None`` of fewer than two."""
        values = self.values
        if len(values) < 2:
            return None
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True)
class Spread:
    """The spread of trials that differ only in their seed: the noise with which all differences are compared.

    Attributes:
        deviation: standard deviation of one trial (of top-1 in points), pooled over groups.
        groups: with two seeds or more.
        trials: in them.
    """

    deviation: float
    groups: int
    trials: int


@dataclass(frozen=True)
class Level:
    """The results with one value of a hyper-parameter, whatever the others were.

    Attributes:
        value: of the hyper-parameter.
        values: the selection metric of the complete trials that had it.
        ended: how many more ended early, or have not ended.
    """

    value: Any
    values: list[float]
    ended: int

    @property
    def mean(self) -> float | None:
        """Mean of the complete trials; ``None`` without one."""
        return math.fsum(self.values) / len(self.values) if self.values else None

    @property
    def low(self) -> float | None:
        """Lowest value of a complete trial."""
        return min(self.values, default=None)

    @property
    def high(self) -> float | None:
        """Highest value of a complete trial."""
        return max(self.values, default=None)


@dataclass(frozen=True)
class Effect:
    """A hyper-parameter and the results with each of its values.

    Attributes:
        name: of the hyper-parameter.
        continuous: whether it takes many values, all numbers: then its levels are single points.
        levels: in ascending order.
    """

    name: str
    continuous: bool
    levels: list[Level]


def completed(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that ran to their end and were validated: only they can be compared."""
    return [trial for trial in trials if trial.state == COMPLETE and trial.value is not None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other point beats.

    Args:
        points: (parameters, value): fewer of the first and more of the second are better.

    Returns:
        indices, in ascending order of parameters. A point is beaten by one that is at least as good in both and better
        in one; equal points stay together.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def seed_groups(trials: Sequence[TrialRecord]) -> list[Group]:
    """Group complete trials that differ only in their seed, the best mean first."""
    alike: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        alike.setdefault(key(without_seed(trial.options)), []).append(trial)
    groups = [
        Group(without_seed(members[0].options), done, len(members) - len(done))
        for members in alike.values()
        if (done := completed(members))
    ]
    return sorted(groups, key=lambda group: (-group.merit, group.parameters))


def seed_spread(groups: Sequence[Group]) -> Spread | None:
    """Pool the standard deviations over seeds, weighed by their degrees of freedom; ``None`` if no seed was varied."""
    repeated = [group for group in groups if group.deviation is not None]
    if not repeated:
        return None
    sizes = [len(group.values) for group in repeated]
    squares = math.fsum((n - 1) * (group.deviation or 0.0) ** 2 for n, group in zip(sizes, repeated, strict=True))
    return Spread(math.sqrt(squares / (sum(sizes) - len(sizes))), len(repeated), sum(sizes))


def effects(trials: Sequence[TrialRecord]) -> list[Effect]:
    """Give for each hyper-parameter that took two values or more the results with each of them.

    The seed is left out: see :func:`seed_spread`. Other options vary at the same time, so they may cause a difference
        between two levels.
    """
    names = dict.fromkeys(name for trial in trials for name in trial.options if name != SEED)
    return [found for name in names if len((found := _effect(name, trials)).levels) > 1]


def without_seed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options without the seed."""
    return {name: value for name, value in options.items() if name != SEED}


def key(value: Any) -> str:
    """Give a text that is equal for equal JSON."""
    return json.dumps(value, sort_keys=True)


def is_number(value: Any) -> bool:
    """Whether a value lies on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _effect(name: str, trials: Sequence[TrialRecord]) -> Effect:
    alike: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if name in trial.options:
            alike.setdefault(key(trial.options[name]), []).append(trial)
    levels = []
    for members in alike.values():
        done = [trial.value for trial in completed(members) if trial.value is not None]
        levels.append(Level(members[0].options[name], done, len(members) - len(done)))
    continuous = len(levels) > MANY and all(is_number(level.value) for level in levels)
    return Effect(name, continuous, sorted(levels, key=lambda level: _order(level.value)))


def _order(value: Any) -> tuple[float, str]:
    """Numbers first, by size, also where they are text (``--layers 4``); then the rest by its text."""
    try:
        return (math.inf if isinstance(value, bool) else float(value)), str(value)
    except (TypeError, ValueError):
        return math.inf, str(value)
