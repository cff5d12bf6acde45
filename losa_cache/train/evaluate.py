"""The metrics of adapters on a source."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.sidenet.operand import Block
from losa_cache.tasks import Task
from losa_cache.tasks.measures.metric import Terms
from losa_cache.train.batch import Batch, Source
from losa_cache.train.sampler import requests_in_order
from losa_cache.tuned.tuned import Model

Scored = Mapping[Terms, Tensor]
"""The terms ``(K, batch, S)`` of a task's metrics, by the function that computed them."""
NOTHING: Scored = MappingProxyType({})
Keep = Callable[[Tensor, Batch, Scored], None]


def keep_nothing(predictions: Tensor, batch: Batch, scored: Scored) -> None:
    """Do nothing with predictions."""


def evaluate(
    adapter: Model,
    source: Source,
    samples: NDArray[np.int64],
    *,
    task: Task,
    batch_size: int,
    autocast: torch.dtype | None,
    clips: int = 1,
    progress: Callable[[float], None] = lambda share: None,
    keep: Keep = keep_nothing,
) -> dict[str, float]:
    """Run the adapter over plain images of these samples, or over all clips of videos and average their predictions.

    Args:
        adapter: on the source's device; or a changed backbone with one, where batches are images.
        source: source of plain batches.
        samples: numbers of the samples.
        task: its metrics are computed.
        batch_size: samples in a batch.
        autocast: dtype of the matrix products, or ``None``.
        clips: number of clips of each sample.
        progress: is called with the finished share after every batch.
        keep: as of :func:`evaluate_each`, with one adapter.

    Returns:
        the task's metrics by name, ``loss`` among them.
    """
    adapter.eval()
    options: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "clips": clips, "progress": progress}
    return evaluate_each(lambda blocks: adapter(blocks)[None], source, samples, task=task, keep=keep, **options)[0]


@torch.inference_mode()
def evaluate_each(
    forward: Callable[[Sequence[Block]], Tensor],
    source: Source,
    samples: NDArray[np.int64],
    *,
    task: Task,
    batch_size: int,
    autocast: torch.dtype | None,
    clips: int = 1,
    progress: Callable[[float], None] = lambda share: None,
    keep: Keep = keep_nothing,
) -> list[dict[str, float]]:
    """Evaluate K adapters in one pass, as :func:`evaluate` does; ``forward`` gives outputs ``(K, batch, outputs)``.

    ``keep`` is called with the predictions of each sample, ``(K, batch, ...)``, their batch, and the terms of the
    metrics, in the order of the samples; for videos once, with the last clip. It must not read the batch's blocks.
    """
    total = torch.empty(0)
    sums: list[Tensor] = []
    means = [metric for metric in task.metrics if metric.terms is not None]
    scores = {metric.terms for metric in means if metric.terms}  # several metrics may have the same terms
    everything: list[tuple[Tensor, Tensor]] = []  # predictions and targets, only if a metric takes all at once
    done = 0
    requests = requests_in_order(samples, batch_size, clips=clips)
    for request, batch in zip(requests, source.batches(requests), strict=True):
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            predictions = task.predictions(forward(batch.blocks).float())
        total = predictions if request.view == 0 else task.sum_clips(total, predictions)
        done += len(batch.ids)
        if request.view == clips - 1:
            predictions = task.average_clips(total, clips)
            terms = {score: score(predictions, batch.labels) for score in scores}
            keep(predictions, batch, terms)
            added = {score: own.sum(1).double() for score, own in terms.items()}
            scored = [added[metric.terms] for metric in means if metric.terms]
            sums = [before + own for before, own in zip(sums, scored, strict=True)] if sums else scored
            if len(means) < len(task.metrics):
                everything.append((predictions, batch.labels))
        progress(done / (len(samples) * clips))
    cuts = list(pairwise(accumulate((own.shape[1] for own in sums), initial=0)))
    averages = (torch.cat(sums, 1) / len(samples)).tolist()  # brought to the host at once
    figures = [
        {metric.name: metric.value(own[start:stop]) for metric, (start, stop) in zip(means, cuts, strict=True)}
        for own in averages
    ]
    if everything:
        of_all, targets = torch.cat([own for own, _ in everything], 1), torch.cat([own for _, own in everything])
        for metric in task.metrics:
            if metric.whole is not None:
                for own, figure in zip(figures, metric.whole(of_all, targets).tolist(), strict=True):
                    own[metric.name] = figure
    return [{metric.name: own[metric.name] for metric in task.metrics} for own in figures]
