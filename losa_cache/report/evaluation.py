"""Everything that an evaluation tells: figures of samples and of groups, with intervals, and what the task shows."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.report.details import Details
from losa_cache.report.outcome import Outcome, by_group, metrics_of
from losa_cache.tasks import Metric, Task

log = logging.getLogger(__name__)
GROUP = "group_"
"""In front of the name of a metric: of means over groups."""


@dataclass(frozen=True)
class Figure:
    """A metric on all samples, or on all groups.

    Attributes:
        name: ``top1``, or ``group_top1``.
        metric: that it is.
        value: NaN where it is not defined.
        low, high: its 95 % interval by the bootstrap; ``None``: it was not asked for, or is not defined.
    """

    name: str
    metric: Metric
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def title(self) -> str:
        """For people: ``top-1 (%)``."""
        return f"{self.metric.label}{', mean of each group' if self.name.startswith(GROUP) else ''}"

    def to_json(self) -> dict[str, Any]:
        """Give value and interval."""
        return {"value": self.value, "low": self.low, "high": self.high}


def figures_of(
    task: Task,
    outcome: Outcome,
    values: Mapping[str, float],
    groups: NDArray[np.int64] | None = None,
    *,
    intervals: bool,
) -> list[Figure]:
    """Compute all metrics of a task; those that are not defined on these samples are left out, if they are extra ones.

    Args:
        task: of the predictions.
        outcome: of the samples.
        values: figures that are known already, by the name of the metric.
        groups: number of each sample's group, from 0; ``None``: there are none.
        intervals: whether every figure gets one; otherwise only that of the selection metric does.
    """
    figures = []
    for metric in metrics_of(task):
        value = values[metric.name] if metric.name in values else float(outcome.figure(metric))
        if metric in task.metrics or not math.isnan(value):
            ends = outcome.interval(metric, groups) if intervals or metric is task.selection else None
            figures.append(Figure(metric.name, metric, value, *(ends or (None, None))))
    of_groups = None if groups is None else by_group(task, outcome, groups)
    if of_groups is None:
        if groups is not None:
            log.warning("there are no means over groups: samples of one group have different targets, or are maps.")
        return figures
    for known in tuple(figures):
        value = float(of_groups.figure(known.metric))
        ends = of_groups.interval(known.metric) if intervals else None
        figures.append(Figure(GROUP + known.name, known.metric, value, *(ends or (None, None))))
    return figures


def flat(figures: list[Figure]) -> dict[str, Any]:
    """Give figures as ``eval.json`` has them: values by name, and intervals as ``NAME_interval``."""
    found: dict[str, Any] = {}
    for figure in figures:
        found[figure.name] = figure.value
        if figure.low is not None:
            found[f"{figure.name}_interval"] = [figure.low, figure.high]
    return found


def tables_of(details: Details) -> dict[str, Any]:
    """Give the lines of a task's tables, by the name of the table."""
    return {table.name: table.records() for table in details.tables}
