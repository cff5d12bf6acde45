"""What is in a cache, as JSON-able figures."""

from pathlib import Path
from typing import Any

import numpy as np

from losa_cache.cache.store import ActivationCache, open_cache


def inspect_cache(path: str | Path) -> dict[str, Any]:
    """Describe a cache, complete or not.

    Returns:
        its path, identity and the fields behind it, shape ``[rows, layers, tokens, width]``, bytes stored and bytes
        of the same values in float32 with their ratio, samples a class, and health: ``complete``, shards present,
        samples skipped, values overflowed and non-finite.

    Raises:
        UserError: if it is no cache.
    """
    cache = open_cache(path, incomplete=True)
    manifest, layout = cache.manifest, cache.layout
    stored, logical = cache.stored_bytes, int(np.prod(layout.shape[:3], dtype=np.int64)) * manifest.width * 4
    return {
        "path": str(cache.path),
        "identity": manifest.identity,
        **manifest.fields,
        "shape": list(layout.shape),
        "tokens": manifest.tokens,
        "chunk": [1, layout.chunk_layers, layout.tokens, layout.columns],
        "shard": [layout.shard_samples, layout.layers, layout.tokens, layout.columns],
        "bytes": {"stored": stored, "as_float32": logical, "ratio": round(logical / stored, 3) if stored else None},
        "classes": _histogram(cache),
        "health": {
            "complete": manifest.complete,
            "shards": layout.shards,
            "shards_present": sum(cache.shard_path(shard).is_file() for shard in range(layout.shards)),
            "skipped": manifest.skipped,
            "overflowed": manifest.overflowed,
            "non_finite": manifest.non_finite,
        },
        "software": manifest.software,
    }


def _histogram(cache: ActivationCache) -> dict[str, int]:
    counts = np.bincount(cache.labels[:: cache.manifest.views][cache.samples], minlength=len(cache.manifest.classes))
    return dict(zip(cache.manifest.classes, counts.tolist(), strict=True))
