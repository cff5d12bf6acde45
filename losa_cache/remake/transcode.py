"""``transcode``: a finished cache in another form, without the backbone."""

from collections.abc import Callable, Sequence
from typing import Any

from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.location import Location, locate
from losa_cache.cache.registry import knows, remember
from losa_cache.cache.storage import StorePath
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.errors import UserError, require_counts
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.remake.change import plan_change
from losa_cache.remake.fill import fill
from losa_cache.remake.fit import fit
from losa_cache.remake.origin import Origin, block_rows
from losa_cache.remake.values import Copied, Points, Recoded, Rows
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import TargetSet


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
    source = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    require_other(place, [source])
    change = plan_change(source.manifest, str(source.path), layers=layers, precision=precision, tokens=tokens)
    points = Points(source, change.kept, pooled=change.pooled, device=choose_device(device), threads=threads)
    rows: dict[str, Any] = {"labels": source.labels, "ids": source.ids}
    tail = {} if change.pooled else source.tail_tensors()
    try:
        with lock_cache(place) as lock:
            if lock.begun():
                writer = CacheWriter.resume(lock, change.manifest, **rows, tail=tail)
            else:
                manifest, layout, encoding = fit(change, points, shard_bytes=size)
                writer = CacheWriter.create(lock, manifest, layout, encoding, **rows, tail=tail)
            with writer:
                maker: Rows
                if change.decoded:
                    maker = Recoded(points, writer.layout, writer.encoding)
                else:
                    maker = Copied(points, writer.layout, change.kept)
                count = block_rows(points.row_bytes)
                if writer.missing() or not writer.manifest.complete:
                    origin = Origin.one(source.layout.samples)
                    fill(writer, [source], [maker], origin, rows=count, workers=threads, progress=progress)
                    writer.finish()
    finally:
        points.close()
    return finished(place, [source.target_set(name) for name in source.manifest.targets], [source])


def require_other(place: StorePath, sources: Sequence[ActivationCache]) -> None:
    """Refuse to write a cache where one of those lies that it is made of.

    Raises:
        UserError: if so.
    """
    if any(place.resolve() == source.path.resolve() for source in sources):
        raise UserError(f"{str(place)!r} is the cache itself: choose another --out.")


def finished(place: StorePath, targets: Sequence[TargetSet], sources: Sequence[ActivationCache]) -> ActivationCache:
    """Write the target sets into a new cache that lacks them, list it for this user, and open it.

    What this user extracted may be opened again to look at its images: so may what is made of it.
    """
    cache = open_cache(place)
    for own in targets:
        if cache.manifest.targets.get(own.name, {}).get("fingerprint") != own.fingerprint:
            add_targets(cache, own)
    cache = open_cache(place)
    known = all(knows(source.path, source.manifest) for source in sources)
    remember(cache.path, cache.manifest, cache.manifest.options if known else None)
    return cache
