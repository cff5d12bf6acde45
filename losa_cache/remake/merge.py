"""``merge``: one cache of the samples of several, whose stored values are copied."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.location import Location, locate
from losa_cache.cache.storage import StorePath
from losa_cache.cache.store import HELD_OUT_SPLITS, ActivationCache, open_cache
from losa_cache.errors import UserError, require_counts
from losa_cache.machine.device import default_workers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.remake.fill import fill
from losa_cache.remake.fit import layout_of
from losa_cache.remake.join import (
    common_targets,
    joined_labels,
    joined_manifest,
    joined_names,
    joined_targets,
    require_alike,
    require_disjoint,
)
from losa_cache.remake.new_cache import Fitted, finished, new_cache, require_other
from losa_cache.remake.origin import Origin, block_rows
from losa_cache.remake.same_values import same_constants, same_tensors
from losa_cache.remake.values import Copied, Points

log = logging.getLogger(__name__)

FEWEST = 2


def merge(
    caches: Sequence[ActivationCache | str | Location],
    out: str | Location,
    *,
    shard_bytes: str | int = SHARD_BYTES,
    workers: int | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> ActivationCache:
    """Write the samples of several finished caches to one, whose stored values are theirs bit for bit.

    The caches agree in everything but their samples, and have no sample in common. Classes, and the names of target
    sets, are matched by name: a class that only some caches know is added behind those of the first. Samples are mixed
    at random. If the new cache was begun, the call goes on with it; if it is complete, it is returned.

    Args:
        caches: two or more complete caches, or their places.
        out: place of the new one: a ``.zarr`` folder or its URL.
        shard_bytes: target size of a shard, such as ``"64MB"``.
        workers: threads; by default one for each core, at most 16.
        progress: is called with the share of the rows that are there.

    Returns:
        the new cache.

    Raises:
        UserError: for caches that do not belong together, a damaged sample, or a place that cannot be written.
    """
    require_counts(workers=workers)
    if len(caches) < FEWEST:
        raise UserError(f"a merge takes two caches or more, and {len(caches)} is given.")
    place, size, threads = locate(out), parse_bytes(shard_bytes), workers or default_workers()
    sources = [cache if isinstance(cache, ActivationCache) else open_cache(cache) for cache in caches]
    require_other(place, sources)
    for other in sources[1:]:
        require_alike(sources[0].manifest, other.manifest, str(other.path))
        _require_same_tensors(sources[0], other)
    require_disjoint(sources)
    _tell_splits([source.manifest.fields["dataset"]["split"] for source in sources])
    first = sources[0].manifest
    counts = [len(source.sample_ids) for source in sources]
    drawn = {"seed": int(first.fields["sampling"]["seed"])}
    samples, origin = Origin.mixed(counts, views=1, **drawn), Origin.mixed(counts, views=first.views, **drawn)
    classes = joined_names([source.manifest.classes for source in sources])
    # before the first shard: what cannot be joined must not be found at the end
    targets = [joined_targets(sources, name, names, samples) for name, names in common_targets(sources).items()]
    _write(place, sources, origin, classes, size=size, threads=threads, progress=progress)
    return finished(place, targets, sources)


def _tell_splits(splits: Sequence[str]) -> None:
    """Warn where samples to train on and samples to test on come together."""
    tests = [split for split in splits if split in HELD_OUT_SPLITS]
    if tests and len(tests) < len(splits):
        log.warning(
            "the merged cache holds samples of the splits %s: what is trained from it cannot be tested on split %r.",
            ", ".join(dict.fromkeys(splits)),
            tests[0],
        )


def _write(
    place: StorePath,
    sources: Sequence[ActivationCache],
    origin: Origin,
    classes: Sequence[str],
    *,
    size: int,
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Write what is missing of the merged cache."""
    first, manifest = sources[0], joined_manifest(sources, classes)
    ids = [sources[part].ids[row] for part, row in zip(origin.part.tolist(), origin.row.tolist(), strict=True)]
    encoding = first.encoding()
    begun: dict[str, Any] = {"sources": sources, "copied": encoding, "ids": ids, "tail": first.tail_tensors()}
    begun["labels"] = joined_labels(sources, classes, origin)
    every, cpu = list(range(len(manifest.points))), torch.device("cpu")
    points = [Points(source, every, pooled=False, device=cpu, threads=threads) for source in sources]

    def laid_out() -> Fitted:
        layout = layout_of(encoding, manifest, len(ids), size)
        return manifest, replace(layout, compressed=first.layout.compressed), encoding

    try:
        with new_cache(place, manifest, laid_out, **begun) as new:
            if new.missing() or not new.manifest.complete:
                makers = [Copied(own, new.layout, every) for own in points]
                rows = block_rows(points[0].row_bytes)
                fill(new, sources, makers, origin, rows=rows, workers=threads, progress=progress)
                new.finish()
    finally:
        for own in points:
            own.close()


def _require_same_tensors(first: ActivationCache, other: ActivationCache) -> None:
    """Refuse a cache whose constants or frozen tail are others: stored values mean something else in it.

    Raises:
        UserError: naming which.
    """
    wrong = {
        f"the constants of its precision {first.manifest.precision}": not same_constants(
            first.encoding(), other.encoding()
        ),
        "its frozen tail": not same_tensors(first.tail_tensors(), other.tail_tensors()),
    }
    for what, differ in wrong.items():
        if differ:
            raise UserError(
                f"cache {str(other.path)!r} cannot be merged with the first, because {what} differ, so stored values "
                "mean something else: extract the samples together, or merge caches of a floating-point precision and "
                "transcode the result."
            )
