"""Fit the encoding of a new cache to the first samples of the one that it is made of, and lay it out."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
from torch import Tensor

from losa_cache.cache.layout import Layout, plan_layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding, get_precision
from losa_cache.cache.store import ActivationCache
from losa_cache.calibrate import collect, compression_ratio, fitting, images_of
from losa_cache.errors import UserError
from losa_cache.remake.change import Change, kept_encoding, total_error
from losa_cache.remake.values import Points


def layout_of(encoding: Encoding, manifest: Manifest, rows: int, shard_bytes: int) -> Layout:
    """Plan chunks and shards, not yet compressed."""
    planes, tokens, columns = encoding.stored_shape(*manifest.shape)
    return plan_layout(
        samples=rows,
        layers=planes,
        tokens=tokens,
        columns=columns,
        itemsize=encoding.precision.itemsize,
        shard_bytes=shard_bytes,
    )


def copied_encoding(change: Change, source: ActivationCache) -> Encoding | None:
    """Give the encoding of stored values that are copied; ``None``: they are encoded anew."""
    if change.decoded:
        return None
    encoding = source.encoding()
    return encoding if source.precision.chained else encoding.select(change.kept)


def fit(change: Change, points: Points, *, shard_bytes: int) -> tuple[Manifest, Layout, Encoding]:
    """Give manifest, layout and encoding of the new cache.

    What is copied keeps its constants and its compression. What is encoded anew is fitted as an extraction does: to the
    plain views of the first samples, as they are decoded.

    Raises:
        UserError: for a damaged sample, or a cache of which every sample was skipped.
    """
    source, manifest = points.cache, change.manifest
    if (encoding := copied_encoding(change, source)) is not None:
        described = kept_encoding(source.manifest.encoding, change.kept)
        layout = layout_of(encoding, manifest, source.layout.samples, shard_bytes)
        return replace(manifest, encoding=described), replace(layout, compressed=source.layout.compressed), encoding
    precision = get_precision(manifest.precision)
    sample = collect(
        _first(change, points, precision.images),
        tokens=manifest.tokens["total"],
        prefix=manifest.tokens["prefix"],
        images=precision.images,
    )
    encoding = sample.fit(precision)
    layout = layout_of(encoding, manifest, source.layout.samples, shard_bytes)
    ratio = compression_ratio(encoding, sample.whole, layout)
    described = encoding.describe() | {"compressed": ratio and round(ratio, 3)}
    if "made_from" not in manifest.fields:  # as an extraction would store the same values
        return replace(manifest, encoding=described), replace(layout, compressed=ratio is not None), encoding
    before = kept_encoding({"error": source.manifest.encoding["error"]}, change.kept)["error"]
    if change.pooled and isinstance(before, list):
        before = [*before, before[-1]]  # the features of the tail come from the last block
    described["error"] = total_error(before, described["error"])
    return replace(manifest, encoding=described), replace(layout, compressed=ratio is not None), encoding


def _first(change: Change, points: Points, images: int) -> Iterator[list[Tensor]]:
    """Decode the plain views of the first samples, a few at a time."""
    cache = points.cache
    there = cache.samples
    if not len(there):
        raise UserError(f"every sample of {str(cache.path)!r} was skipped: there is nothing to encode.")
    values = len(change.kept) * prod(cache.manifest.shape[1:])
    first = there[: images_of(values, len(there), images)] * cache.manifest.views
    at_once = fitting(values)
    for start in range(0, len(first), at_once):
        yield points.decoded(points.stored(np.ascontiguousarray(first[start : start + at_once])))
