"""Pooled rows of all layers, and the frozen tail's features, from one pass over a cache. *Not from the paper*."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.points import EMBEDDING, POOLED, TAIL
from losa_cache.sidenet.operand import dense
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.train.cached import open_cached
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import requests_in_order
from losa_cache.train.training_data import frozen_tail

BATCH = 64


@dataclass(frozen=True, eq=False)
class Features:
    """The features of N samples that a probe reads.

    Attributes:
        rows: float32 ``(N, points, m, d)``: for each point the class token and the mean of the patches, each token
            layer-normed first; without class tokens only the mean.
        tail: float32 ``(N, d)``: the frozen tail's feature vector, which ``--side linear`` classifies.
        labels: int64 ``(N,)``.
        ids: of the samples.
        points: names, first to last.
    """

    rows: Tensor
    tail: Tensor
    labels: Tensor
    ids: list[str]
    points: list[str]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of features of a point."""
        return ("cls", "mean", "both") if self.rows.shape[2] == 2 else ("mean",)

    def of(self, point: str | None, kind: str) -> Tensor:
        """Give ``(N, F)`` features of one point, or of all of them (``None``).

        Args:
            point: one of ``points``.
            kind: one of ``kinds``.
        """
        rows = self.rows if point is None else self.rows[:, self.points.index(point), None]
        part = {"cls": rows[:, :, :1], "mean": rows[:, :, -1:], "both": rows}[kind]
        return part.flatten(1)


def probed_points(cache: ActivationCache) -> list[str]:
    """Name the points that a probe reads: all but the embedding."""
    return [point for point in cache.manifest.points if point not in (EMBEDDING, TAIL)]


def rows_of_point(cache: ActivationCache) -> int:
    """Number of rows m of each point."""
    stored: int = cache.manifest.tokens["total"]
    return stored if _is_pooled(cache) else pooling_of(cache.manifest.tail).rows


def read_features(
    cache: ActivationCache,
    samples: NDArray[np.int64],
    placement: Placement,
    *,
    labels: NDArray[np.int64] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Features:
    """Read a cache once. Blocks are decoded and pooled on the device, and only the rows are kept, in host memory.

    If there are augmented views, the plain one is read; the rows of the clips of a video are averaged.

    Args:
        cache: a cache of all tokens, or of pooled rows.
        samples: numbers of the samples; the features come in this order.
        placement: where blocks are decoded and pooled, and where activations are kept.
        labels: the class of every sample of the cache; by default the cache's own.
        progress: is called with the finished share.

    Raises:
        UserError: for features that are not finite, naming the sample.
    """
    points, pooled = probed_points(cache), _is_pooled(cache)
    pooling, tail = pooling_of(cache.manifest.tail), frozen_tail(cache).to(placement.device)
    width, clips = cache.manifest.width, cache.manifest.clips
    rows = torch.zeros(len(samples), len(points), rows_of_point(cache), width)
    features = torch.zeros(len(samples), width)
    source = open_cached(
        cache,
        [*points, TAIL] if pooled else points,
        placement,
        samples=samples,
        passes=1,
        batch_size=BATCH,
    )
    try:
        requests = requests_in_order(samples, BATCH, clips=clips)
        done = 0
        with torch.inference_mode():
            for request, batch in zip(requests, source.batches(requests), strict=True):
                blocks = dense(batch.blocks)
                end = done + len(batch.ids)
                own = torch.stack([block.float() if pooled else pooling(block) for block in blocks[: len(points)]], 1)
                vector = tail(blocks[-1])
                _require_finite(own, vector, batch.ids, cache)
                rows[done:end] += own.cpu() / clips
                features[done:end] += vector.float().cpu() / clips
                done = end if request.view == clips - 1 else done
                progress((done + request.view * len(batch.ids) / clips) / len(samples))
    finally:
        source.close()
    known = cache.labels[:: cache.manifest.views] if labels is None else labels
    return Features(rows, features, torch.from_numpy(known[samples]), list(cache.sample_ids.take(samples)), points)


def _is_pooled(cache: ActivationCache) -> bool:
    return cache.manifest.holds == POOLED


def _require_finite(rows: Tensor, tail: Tensor, ids: list[str], cache: ActivationCache) -> None:
    fine = rows.flatten(1).isfinite().all(1) & tail.isfinite().all(1)
    if not bool(fine.all()):
        wrong = ids[int((~fine).nonzero()[0])]
        raise UserError(
            f"the features of sample {wrong!r} in cache {str(cache.path)!r} are infinite or not numbers: extract it "
            "with --precision bfloat16 or float32, or without that image."
        )
