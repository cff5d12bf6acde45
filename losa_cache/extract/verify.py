"""``verify_cache``: check every checksum and receipt, compute samples again, and repair."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from losa_cache.backbone import Backbone
from losa_cache.cache.health import Damage, examine
from losa_cache.cache.location import Location, locate
from losa_cache.cache.store import ActivationCache
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError, require_seed
from losa_cache.extract.recompute import compare, mend, reopen
from losa_cache.inputs import Inputs


def verify_cache(
    path: str | Location,
    *,
    recompute: int = 0,
    repair: bool = False,
    backbone: Backbone | None = None,
    dataset: Samples | None = None,
    data_dir: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    scheduler: str | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Check a complete cache and, if requested, repair it (``docs/protocol.md``, section "Verifying").

    Args:
        path: the ``.zarr`` folder, or its URL.
        recompute: number of random rows to compute again by the backbone, and to compare.
        repair: restore damaged metadata files, compute damaged samples again, and check the repaired parts. It also
            adds the lists of checksums that caches of older versions lack.
        backbone, dataset: loaded ones, if the cache was extracted from such.
        data_dir, weights: where images and weights are now; by default where they were at extraction.
        device: device of the backbone; by default the GPU if there is one.
        scheduler: address of a dask.distributed scheduler; by default threads of this process.
        seed: seed of the choice of rows.
        progress: is called with the share of the shards that were checked.

    Returns:
        ``cache``, ``identity``, ``shards``, ``rows``, ``bytes``, ``seconds``; ``damaged``: ``files``, ``shards``
        (``{"shard", "reason", "samples"}``) and ``samples`` (ids) as found; ``repaired``; ``recomputed`` (or null);
        ``intact``: whether nothing is damaged any more, and no recomputed row differs.

    Raises:
        UserError: if it is no complete cache, or the request is impossible.
    """
    if recompute < 0:
        raise UserError(f"recompute is {recompute}: it must be at least 0.")
    require_seed(seed)
    store, opened = locate(path), list[Inputs]()

    def inputs() -> Inputs:
        if not opened:
            opened.append(
                reopen(cache, backbone=backbone, dataset=dataset, data_dir=data_dir, weights=weights, device=device)
            )
        return opened[0]

    started = perf_counter()
    cache, damage = examine(store, scheduler=scheduler, progress=progress)
    seconds = perf_counter() - started
    found = damage
    if (damage or damage.lists) and repair:
        mend(cache, damage, inputs)
        mended = [part.shard for part in damage.shards]
        cache, found = examine(store, shards=mended, scheduler=scheduler, progress=progress)
    compared = compare(cache, inputs(), recompute, seed=seed) if recompute and not found else None
    return {
        "cache": str(store),
        "identity": cache.manifest.identity,
        "shards": cache.layout.shards,
        "rows": cache.layout.samples,
        "bytes": cache.stored_bytes,
        "seconds": round(seconds, 3),
        "damaged": _named(cache, damage),
        "repaired": bool(damage) and not found,
        "recomputed": compared,
        "intact": not found and not (compared and compared["wrong"]),
    }


def _named(cache: ActivationCache, damage: Damage) -> dict[str, Any]:
    return {
        "files": damage.files,
        "shards": [
            {
                "shard": part.shard,
                "reason": part.reason,
                "samples": len(cache.layout.rows(part.shard) if part.rows is None else part.rows),
            }
            for part in damage.shards
        ],
        "samples": damage.samples(cache),
    }
