"""Moments of every point, computed out of core: each worker reads one shard, a few samples at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.cache.checked import REPAIR
from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import Encoding
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.shard import DamagedShardError, ShardReader
from losa_cache.cache.shard_map import map_shards
from losa_cache.cache.storage import StorePath
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError

TOGETHER = 2**18  # elements whose moments are taken at once: small samples cost no time of their own


@dataclass(frozen=True)
class Moments:
    """Moments of the finite values at each point: float64 ``(points,)``.

    Attributes:
        rows: number of rows that were read.
        count, mean: number and mean of the values.
        spread: sum of squared deviations from the mean.
        largest: largest magnitude.
        non_finite: number of values that are not finite.
    """

    rows: int
    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    largest: NDArray[np.float64]
    non_finite: NDArray[np.float64]

    def __add__(self, other: "Moments") -> "Moments":
        """Join two samples (Chan, Golub and LeVeque 1983, equation 2.1)."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        apart = other.mean - self.mean
        return Moments(
            self.rows + other.rows,
            count,
            self.mean + apart * share,
            self.spread + other.spread + apart**2 * self.count * share,
            np.maximum(self.largest, other.largest),
            self.non_finite + other.non_finite,
        )

    @classmethod
    def of(cls, values: torch.Tensor) -> "Moments":
        """Compute the moments of samples, float64 ``(points, samples, values)``."""
        rows, values = values.shape[1], values.flatten(1)
        finite = values.isfinite()
        count = finite.sum(dim=1).double()
        known = values.where(finite, 0)
        mean = known.sum(dim=1) / count.clamp_min(1)
        spread = (known - mean[:, None]).where(finite, 0).square().sum(dim=1)
        parts = (count, mean, spread, known.abs().amax(dim=1), (~finite).sum(dim=1).double())
        return cls(rows, *(part.numpy() for part in parts))


@dataclass(frozen=True)
class ShardToSum:
    """Everything that a worker needs to read one shard."""

    path: StorePath
    receipt: Receipt | None
    rows: range
    layout: Layout
    encoding: Encoding
    skipped: frozenset[int]


def point_statistics(
    cache: ActivationCache,
    shards: Sequence[int],
    *,
    scheduler: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Describe the values at every point.

    Args:
        cache: opened.
        shards: those to read.
        scheduler, progress: as of ``map_shards``.

    Returns:
        ``rows`` looked at, and ``points``: by name ``mean``, ``std``, ``largest`` (magnitude), ``non_finite`` (count).

    Raises:
        UserError: for a damaged shard.
    """
    skipped = cache.manifest.skipped_rows
    layout, encoding = cache.layout, cache.encoding()
    tasks = [
        ShardToSum(
            cache.shard_path(shard),
            None if cache.digests is None else Receipt(cache.receipts, shard, cache.manifest.identity),
            layout.rows(shard),
            layout,
            encoding,
            skipped.intersection(layout.rows(shard)),
        )
        for shard in shards
    ]
    try:
        found = [m for m in map_shards(sum_shard, tasks, scheduler=scheduler, progress=progress) if m is not None]
    except (DamagedShardError, OSError) as error:
        raise UserError(f"cache {str(cache.path)!r} is damaged ({error}): {REPAIR}.") from error
    if not found:
        return {"rows": 0, "points": {}}
    total = reduce(Moments.__add__, found)
    std = np.sqrt(total.spread / np.maximum(total.count, 1))
    columns = zip(total.mean, std, total.largest, total.non_finite, strict=True)
    return {
        "rows": total.rows,
        "points": {
            point: {
                "mean": float(f"{mean:.6g}"),
                "std": float(f"{deviation:.6g}"),
                "largest": float(f"{largest:.6g}"),
                "non_finite": int(non_finite),
            }
            for point, (mean, deviation, largest, non_finite) in zip(cache.manifest.points, columns, strict=True)
        },
    }


def sum_shard(task: ShardToSum) -> Moments | None:
    """Sum the samples of a shard; ``None`` if it has none."""
    torch.set_num_threads(1)  # of this worker thread: the workers are the parallelism
    layout, encoding = task.layout, task.encoding
    reader = ShardReader(task.path.open_bytes(), layout)
    if task.receipt is not None:
        task.receipt.bind(task.path, lambda: reader)
    there = np.array([place for place, row in enumerate(task.rows) if row not in task.skipped], dtype=np.int64)
    at_once = max(1, min(len(there), TOGETHER // (layout.layers * layout.tokens * layout.columns)))
    shape = (layout.layers, at_once, layout.tokens, layout.columns)
    stored = torch.empty(shape, dtype=encoding.precision.stored_dtype)
    targets = dict(enumerate(stored.view(torch.uint8).numpy().reshape(layout.layers, at_once, -1)))
    total: Moments | None = None
    for at in range(0, len(there), at_once):
        places = there[at : at + at_once]
        reader.read_rows(places, targets, np.arange(len(places)))
        values = [block.double().flatten(1) for block in encoding.decode(list(stored[:, : len(places)]))]
        moments = Moments.of(torch.stack(values))
        total = moments if total is None else total + moments
    return total
