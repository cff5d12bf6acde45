"""Predictions of an adapter beside their targets, and figures of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.tasks import Metric, Task
from losa_cache.tasks.measures.bootstrap import interval
from losa_cache.tasks.measures.totals import totals
from losa_cache.train.batch import Batch
from losa_cache.train.evaluate import NOTHING, Scored

EXAMPLES = 12
"""Samples of which a dense task keeps its predictions: a report shows them."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an adapter predicts for N samples, on the CPU, in their order.

    Attributes:
        ids: of all samples.
        predictions, targets: of all samples, ``(N, ...)``; of a dense task, of the first ``EXAMPLES``.
        terms: of each metric that has some, by its name, ``(N, S)``.
        names: of the classes, labels or columns.
        images: of the first samples, uint8 ``(H, W, 3)``, ``None`` where one is not known; empty: none are shown.
    """

    ids: Sequence[str]
    predictions: Tensor
    targets: Tensor
    terms: Mapping[str, Tensor]
    names: Sequence[str]
    images: Sequence[NDArray[np.uint8] | None] = ()

    def figure(self, metric: Metric, weights: Tensor | None = None) -> Tensor:
        """Compute a metric, ``(B,)``, with samples counted as often as weights ``(B, N)`` say."""
        if metric.terms is None:
            assert metric.whole is not None
            return metric.whole(self.predictions[None], self.targets, weights)
        terms = self.terms[metric.name]
        sums = totals(terms[None], weights)
        counts = len(terms) if weights is None else weights.sum(1, keepdim=True)
        return torch.tensor([metric.value(means) for means in (sums / counts).tolist()], dtype=torch.float64)

    def interval(self, metric: Metric, groups: NDArray[np.int64] | None = None) -> tuple[float, float] | None:
        """Give the 95 % interval of a metric by the bootstrap, over samples or over groups of them.

        Args:
            metric: to be computed.
            groups: number of each sample's group, from 0.
        """
        size = self.terms[metric.name].shape[1] if metric.terms else self.predictions[0].numel()
        return interval(lambda weights: self.figure(metric, weights), len(self.ids), groups=groups, size=size)


def metrics_of(task: Task) -> list[Metric]:
    """List all metrics of a task: those of every evaluation, and those that are reported, too."""
    known = {metric.name for metric in task.metrics}
    return [*task.metrics, *(metric for metric in task.more if metric.name not in known)]


@dataclass(eq=False)
class OutcomeCollector:
    """Collects batch by batch, as ``keep`` of :func:`losa_cache.train.evaluate.evaluate`.

    Attributes:
        task: whose predictions they are.
        names: of the classes, labels or columns.
    """

    task: Task
    names: Sequence[str]
    _ids: list[str] = field(default_factory=list)
    _parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _terms: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, predictions: Tensor, batch: Batch, scored: Scored = NOTHING) -> None:
        """Take the predictions of one adapter for a batch, ``(1, batch, ...)``, and terms that are computed already."""
        for name, terms in _terms(self.task, predictions, batch.labels, scored).items():
            self._terms.setdefault(name, []).append(terms)
        wanted = max(0, EXAMPLES - len(self._ids)) if self.task.dense else len(batch.ids)
        if wanted:
            self._parts.append((predictions[0, :wanted].cpu(), batch.labels[:wanted].cpu()))
        self._ids.extend(batch.ids)

    def outcome(self) -> Outcome:
        """Give all that was taken."""
        predictions, targets = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        terms = {name: torch.cat(parts) for name, parts in self._terms.items()}
        return Outcome(self._ids, predictions, targets, terms, self.names)


def _terms(task: Task, predictions: Tensor, targets: Tensor, scored: Scored = NOTHING) -> dict[str, Tensor]:
    """Give the terms of one adapter for every metric that has some, on the CPU; what is not ``scored`` is computed."""
    named = {metric.name: metric.terms for metric in metrics_of(task) if metric.terms is not None}
    missing = set(named.values()) - scored.keys()
    computed = {**scored, **{score: score(predictions, targets) for score in missing}}
    return {name: computed[score][0].cpu() for name, score in named.items()}


def by_group(task: Task, outcome: Outcome, groups: NDArray[np.int64]) -> Outcome | None:
    """Average the predictions of each group, as of clips of a video.

    Args:
        task: of the predictions.
        outcome: of the samples.
        groups: number of each sample's group, from 0; none is left out.

    Returns:
        the outcome of the groups; ``None`` where the samples of a group have several targets, and of dense tasks.
    """
    if task.dense:
        return None
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    starts = np.cumsum(counts) - counts
    first = torch.from_numpy(order[starts])
    targets = outcome.targets[first]
    if not torch.equal(targets[torch.from_numpy(groups)], outcome.targets):
        return None
    predictions = outcome.predictions[first][None]
    for size in np.unique(counts[counts > 1]).tolist():
        (chosen,) = np.nonzero(counts == size)
        places = torch.from_numpy(order[starts[chosen, None] + np.arange(size)])  # (groups of this size, size)
        total = outcome.predictions[places[:, 0]][None]
        for place in range(1, size):
            total = task.sum_clips(total, outcome.predictions[places[:, place]][None])
        predictions[:, torch.from_numpy(chosen)] = task.average_clips(total, size)
    ids, terms = [str(number) for number in range(len(counts))], _terms(task, predictions, targets)
    return Outcome(ids, predictions[0], targets, terms, outcome.names)
