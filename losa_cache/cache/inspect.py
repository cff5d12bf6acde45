"""What a cache contains, and which caches there are, as figures that JSON can hold."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from losa_cache.cache.identity import AS_STORED
from losa_cache.cache.location import Location
from losa_cache.cache.registry import known_stores
from losa_cache.cache.statistics import point_statistics
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.folders import home

SHARDS_LOOKED_AT = 2  # samples are in random order: the first shards are a fair sample


def inspect_cache(
    path: str | Location,
    *,
    full: bool = False,
    scheduler: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Describe a cache, complete or not.

    Args:
        path: the ``.zarr`` folder, or its URL.
        full: take the statistics over all shards, not over the first two.
        scheduler, progress: as of ``verify_cache``.

    Returns:
        its path, identity and the fields behind it, shape ``[rows, points, tokens, columns]``, bytes stored and bytes
        of the same values in float32 with their ratio, the encoding with its errors, which layers a run reads,
        statistics of every point, samples a class, and health: ``complete``, shards present, samples skipped, values
        overflowed and non-finite.

    Raises:
        UserError: if it is no cache, or a shard that is read is damaged.
    """
    cache = open_cache(path, incomplete=True)
    manifest, layout = cache.manifest, cache.layout
    present = list(cache.shard_sizes())
    looked_at = present if full else present[:SHARDS_LOOKED_AT]
    stored, logical = cache.stored_bytes, layout.samples * math.prod(manifest.shape) * 4
    return {
        "path": str(cache.path),
        "identity": manifest.identity,
        **manifest.fields,
        "orientation": manifest.fields.get("orientation", AS_STORED),
        "shape": list(layout.shape),
        "tokens": {"stored": manifest.holds, **manifest.tokens},
        "chunk": [1, layout.chunk_layers, layout.tokens, layout.columns],
        "shard": [layout.shard_samples, layout.layers, layout.tokens, layout.columns],
        "bytes": {"stored": stored, "as_float32": logical, "ratio": round(logical / stored, 3) if stored else None},
        "encoding": manifest.encoding,
        "layers_read": cache.precision.layers_read,
        "statistics": point_statistics(cache, looked_at, scheduler=scheduler, progress=progress),
        "classes": _histogram(cache),
        "targets": [{"name": name} | declared for name, declared in manifest.targets.items()],
        "health": {
            "complete": manifest.complete,
            "shards": layout.shards,
            "shards_present": len(present),
            "skipped": manifest.skipped,
            "overflowed": manifest.overflowed,
            "non_finite": manifest.non_finite,
        },
        "software": manifest.software,
    }


def _histogram(cache: ActivationCache) -> dict[str, int]:
    counts = np.bincount(cache.labels[:: cache.manifest.views][cache.samples], minlength=len(cache.manifest.classes))
    return dict(zip(cache.manifest.classes, counts.tolist(), strict=True))


def list_caches() -> list[dict[str, Any]]:
    """Describe briefly the caches that this user completed anywhere, and those below ``$LOSA_CACHE_HOME/caches``.

    Returns:
        ``path``, ``backbone``, ``dataset``, ``split``, ``tap``, ``tokens``, ``points`` (how many), ``precision``,
        ``rows``, ``bytes`` and ``complete`` of each, the most recently completed first; ``error`` in place of these
        where one cannot be opened.
    """
    stores = [*known_stores(), *sorted((home() / "caches").glob("*.zarr"))]
    return [_in_short(Path(path)) for path in dict.fromkeys(map(os.path.realpath, stores))]


def _in_short(path: Path) -> dict[str, Any]:
    try:
        cache = open_cache(path, incomplete=True)
    except UserError as error:
        return {"path": str(path), "error": str(error)}
    fields = cache.manifest.fields
    return {
        "path": str(path),
        "backbone": fields["backbone"]["name"],
        "dataset": fields["dataset"]["name"],
        "split": fields["dataset"]["split"],
        "tap": fields["tap"],
        "tokens": cache.manifest.holds,
        "points": len(cache.manifest.points),
        "precision": cache.manifest.precision,
        "rows": cache.layout.samples,
        "bytes": cache.stored_bytes,
        "complete": cache.manifest.complete,
    }
