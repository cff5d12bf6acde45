"""``transcode``: a finished cache in another form, without the backbone."""

from collections.abc import Callable, Sequence
from typing import Any

from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.location import Location, locate
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import require_counts
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.remake.change import plan_change
from losa_cache.remake.fill import fill
from losa_cache.remake.fit import copied_encoding, fit
from losa_cache.remake.new_cache import finished, new_cache, require_other
from losa_cache.remake.origin import Origin, block_rows
from losa_cache.remake.values import Copied, Points, Recoded


def transcode(
    cache: ActivationCache | str | Location,
    out: str | Location,
    *,
    precision: str | None = None,
    layers: str | int | Sequence[int] | None = None,
    tokens: str | None = None,
    shard_bytes: str | int = SHARD_BYTES,
    device: str | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> ActivationCache:
    """Write a finished cache in another form: the decoded block outputs are the input, the backbone is not run.

    What is not encoded anew is copied bit for bit: fewer layers, other shards, another store. Samples, labels, skipped
    rows and target sets stay. If the new cache was begun, the call goes on with it; if it is complete, it is returned.
    The call sets the process's malloc to keep freed memory (``losa_cache.machine.allocator``).

    Args:
        cache: a complete cache, or its place.
        out: place of the new one: a ``.zarr`` folder or its URL.
        precision: of the new cache, no finer than the old one's; by default the same. If the old one's is lossy, its
            decoded values are encoded.
        layers: ``"all"``, K evenly spaced ones of those in the cache, or block numbers; by default all.
        tokens: ``"pooled"`` stores pooled rows of all tokens; by default what the cache holds.
        shard_bytes: target size of a shard, such as ``"64MB"``.
        device: that decodes and encodes: ``cpu``, ``cuda`` or ``cuda:1``; by default the GPU if there is one.
        workers: threads; by default one for each core, at most 16.
        progress: is called with the share of the rows that are there.

    Returns:
        the new cache.

    Raises:
        UserError: for a change that cannot be made, a damaged sample, or a place that cannot be written.
    """
    require_counts(workers=workers)
    place, size, threads = locate(out), parse_bytes(shard_bytes), workers or default_workers()
    keep_freed_memory()
    source = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    require_other(place, [source])
    change = plan_change(source.manifest, str(source.path), layers=layers, precision=precision, tokens=tokens)
    points = Points(source, change.kept, pooled=change.pooled, device=choose_device(device), threads=threads)
    begun: dict[str, Any] = {"sources": [source], "copied": copied_encoding(change, source)}
    begun |= {"labels": source.labels, "ids": source.ids, "tail": {} if change.pooled else source.tail_tensors()}
    targets = [source.target_set(name) for name in source.manifest.targets]  # one that is damaged is named now
    try:
        with new_cache(place, change.manifest, lambda: fit(change, points, shard_bytes=size), **begun) as new:
            if new.missing() or not new.manifest.complete:
                maker = (
                    Recoded(points, new.layout, new.encoding)
                    if change.decoded
                    else Copied(points, new.layout, change.kept)
                )
                origin, count = Origin.one(source.layout.samples), block_rows(points.row_bytes)
                fill(new, [source], [maker], origin, rows=count, workers=threads, progress=progress)
                new.finish()
    finally:
        points.close()
    return finished(place, targets, [source])
