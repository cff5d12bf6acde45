"""Prepare a cache for writing: plan it, fit its encoding to its first images, and create it or open it to resume."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from losa_cache.cache.layout import SHARD_BYTES, Layout, plan_layout
from losa_cache.cache.location import Location
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding, get_precision
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.calibrate import calibrate, compression_ratio
from losa_cache.ids import Ids
from losa_cache.inputs import Inputs
from losa_cache.sources import Sources


def plan_store(inputs: Inputs, encoding: Encoding, *, batch_size: int = 1, shard_bytes: int = SHARD_BYTES) -> Layout:
    """Plan chunks and shards of an encoding, not yet compressed, that is written in batches of ``batch_size`` rows."""
    manifest = inputs.manifest
    planes, tokens, columns = encoding.stored_shape(len(manifest.points), inputs.backbone.tokens, manifest.width)
    return plan_layout(
        samples=len(inputs.samples) * manifest.views,
        layers=planes,
        tokens=tokens,
        columns=columns,
        itemsize=encoding.precision.itemsize,
        shard_bytes=shard_bytes,
        batch=batch_size,
    )


def sources_of(writer: CacheWriter, inputs: Inputs) -> Sources | None:
    """Give the lists of a cache's source files; ``None`` if samples do not lie in files or archives."""
    if not inputs.samples.stored:
        return None
    return Sources(writer.path, writer.layout, writer.manifest, inputs.samples)


@contextmanager
def create_cache(
    inputs: Inputs,
    path: Location,
    *,
    workers: int,
    batch_size: int,
    options: dict[str, Any] | None,
    shard_bytes: int = SHARD_BYTES,
    shared: bool = False,
) -> Iterator[tuple[CacheWriter, int]]:
    """Create a cache, or open it to resume. For a new cache, encoding and compression are fitted to the first images.

    The lock is taken first, so if two processes start, one fits and writes, and the other is refused at once. If they
    share the cache, one fits, and the others wait for it and go on with what it made.

    Args:
        inputs: what is extracted.
        path: place of the ``.zarr`` folder.
        workers: number of threads that decode the first images.
        batch_size: rows of a batch.
        options: options that the cache stores, so that its samples can be computed again.
        shard_bytes: target size of a shard.
        shared: write it with other processes.

    Yields:
        its writer, and the rows of a batch on which all processes agree.

    Raises:
        UserError: if another process writes it, it has another identity, it cannot be written, or the disk is too small
            for the rest.
    """
    samples, views = inputs.samples, inputs.manifest.views
    labels = np.repeat(samples.labels, views)
    ids = Ids.of(samples.ids).repeat(views)
    tail = dict(inputs.backbone.tail.state_dict())
    with lock_cache(path, shared=shared) as lock:
        claims = lock.claims

        def begin() -> tuple[CacheWriter, int]:
            alone = claims is None or not claims.others
            if claims is not None and alone:
                claims.clear()
            if lock.begun():
                writer = CacheWriter.resume(lock, inputs.manifest, labels=labels, ids=ids, tail=tail, alone=alone)
            else:
                fitted = _fit(inputs, workers=workers, batch_size=batch_size, options=options, shard_bytes=shard_bytes)
                writer = CacheWriter.create(lock, *fitted, labels=labels, ids=ids, tail=tail)
            return writer, batch_size if claims is None else claims.agree(batch_size, first=alone)

        writer, agreed = lock.in_turn(begin)
        with writer:
            yield writer, agreed


def _fit(
    inputs: Inputs, *, workers: int, batch_size: int, options: dict[str, Any] | None, shard_bytes: int
) -> tuple[Manifest, Layout, Encoding]:
    precision = get_precision(inputs.manifest.precision)
    sample = calibrate(inputs, workers=workers, images=precision.images)
    encoding = sample.fit(precision)
    layout = plan_store(inputs, encoding, batch_size=batch_size, shard_bytes=shard_bytes)
    ratio = compression_ratio(encoding, sample.whole, layout)
    described = encoding.describe() | {"compressed": ratio and round(ratio, 3)}
    manifest = replace(inputs.manifest, encoding=described, options=options)
    return manifest, replace(layout, compressed=ratio is not None), encoding
