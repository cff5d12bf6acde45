"""Top-1, top-5 and loss of adapters on a source."""

from collections.abc import Callable, Sequence
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.operand import Block
from losa_cache.train.batch import Batch, Source
from losa_cache.train.sampler import requests_in_order

Keep = Callable[[Tensor, Batch], None]


def keep_nothing(log_probabilities: Tensor, batch: Batch) -> None:
    """Take what nobody asked for."""


def evaluate(
    adapter: Adapter,
    source: Source,
    samples: NDArray[np.int64],
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    clips: int = 1,
    progress: Callable[[float], None] = lambda share: None,
    keep: Keep = keep_nothing,
) -> dict[str, float]:
    """Run the adapter over plain images of these samples, or over all clips of videos and average their probabilities.

    Args:
        adapter: on the source's device.
        source: of plain batches.
        samples: their numbers.
        batch_size: samples a batch.
        autocast: dtype of the matrix products, or ``None``.
        clips: of each sample.
        progress: is given the share done, after every batch.
        keep: as of :func:`evaluate_each`, with one adapter.

    Returns:
        ``loss`` (cross entropy, nats), ``top1`` and ``top5`` (percent; top-5 of fewer than 6 classes is 100).
    """
    adapter.eval()
    options: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "clips": clips, "progress": progress}
    return evaluate_each(lambda blocks: adapter(blocks)[None], source, samples, keep=keep, **options)[0]


@torch.inference_mode()
def evaluate_each(
    forward: Callable[[Sequence[Block]], Tensor],
    source: Source,
    samples: NDArray[np.int64],
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    clips: int = 1,
    progress: Callable[[float], None] = lambda share: None,
    keep: Keep = keep_nothing,
) -> list[dict[str, float]]:
    """Evaluate K adapters in one pass: as :func:`evaluate`, with ``forward`` giving logits ``(K, batch, classes)``.

    ``keep`` is given the log-probabilities of each sample, ``(K, batch, classes)``, and their batch, in the order of
    the samples; of videos once, with the last clip. The batch's blocks are no longer to be read.
    """
    sums = torch.empty(0)
    summed = torch.empty(0)
    done = 0
    requests = requests_in_order(samples, batch_size, clips=clips)
    for request, batch in zip(requests, source.batches(requests), strict=True):
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            found = F.log_softmax(forward(batch.blocks).float(), -1)
        summed = found if request.view == 0 else torch.logaddexp(summed, found)
        done += len(batch.ids)
        if request.view == clips - 1:
            found = summed - log(clips)
            keep(found, batch)
            scored = _score(found, batch.labels)
            sums = scored if sums.ndim == 1 else sums + scored
        progress(done / (len(samples) * clips))
    means = (sums / len(samples)).tolist()
    return [{"loss": loss, "top1": 100 * top1, "top5": 100 * top5} for loss, top1, top5 in means]


def _score(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Sum over a batch, float64 ``(K, 3)``: negative log-likelihood, hits of the first, hits among the first five."""
    loss = -log_probabilities.gather(2, labels.expand(len(log_probabilities), -1)[..., None]).sum((1, 2))
    first = log_probabilities.topk(min(5, log_probabilities.shape[2])).indices == labels[:, None]
    return torch.stack([loss.double(), first[..., 0].sum(1).double(), first.sum((1, 2)).double()], dim=1)
