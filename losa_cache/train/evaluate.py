"""Top-1, top-5 and loss of an adapter on a source."""

from collections.abc import Callable

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
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, float]:
    """Run the adapter over plain images of these samples; say after every batch which share of them is done.

    Returns:
        ``loss`` (cross entropy, nats), ``top1`` and ``top5`` (percent; top-5 of fewer than 6 classes is 100).
    """
    adapter.eval()
    loss = top1 = top5 = 0.0
    done = 0
    for batch in source.batches(requests_in_order(samples, batch_size)):
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            logits = adapter(batch.blocks).float()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
        hits = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        top1 += hits[:, 0].sum().item()
        top5 += hits.sum().item()
        done += len(batch.ids)
        progress(done / len(samples))
    return {"loss": loss / len(samples), "top1": 100 * top1 / len(samples), "top5": 100 * top5 / len(samples)}
