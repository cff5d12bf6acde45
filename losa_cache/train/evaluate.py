"""Top-1, top-5 and loss of an adapter on a source."""

from collections.abc import Callable
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.train.batch import Source
from losa_cache.train.sampler import requests_in_order


@torch.inference_mode()
def evaluate(
    adapter: Adapter,
    source: Source,
    samples: NDArray[np.int64],
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    clips: int = 1,
    progress: Callable[[float], None] = lambda share: None,
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

    Returns:
        ``loss`` (cross entropy, nats), ``top1`` and ``top5`` (percent; top-5 of fewer than 6 classes is 100).
    """
    adapter.eval()
    loss = top1 = top5 = 0.0
    summed = torch.empty(0)
    done = 0
    requests = requests_in_order(samples, batch_size, clips=clips)
    for request, batch in zip(requests, source.batches(requests), strict=True):
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            found = F.log_softmax(adapter(batch.blocks).float(), -1)
        summed = found if request.view == 0 else torch.logaddexp(summed, found)
        done += len(batch.ids)
        if request.view == clips - 1:
            loss += F.nll_loss(summed - log(clips), batch.labels, reduction="sum").item()
            hits = summed.topk(min(5, summed.shape[1])).indices == batch.labels[:, None]
            top1 += hits[:, 0].sum().item()
            top5 += hits.sum().item()
        progress(done / (len(samples) * clips))
    return {"loss": loss / len(samples), "top1": 100 * top1 / len(samples), "top5": 100 * top5 / len(samples)}
