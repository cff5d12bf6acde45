"""A cache about to be written: planned, fitted to its first images, created or opened to be resumed."""

from dataclasses import replace
from typing import Any

import numpy as np

from losa_cache.cache.layout import SHARD_BYTES, Layout, plan_layout
from losa_cache.cache.location import Location
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding, get_precision
from losa_cache.cache.remote import RemotePath
from losa_cache.cache.remote_writer import RemoteWriter
from losa_cache.cache.writer import CacheWriter
from losa_cache.calibrate import calibrate, compression_ratio
from losa_cache.inputs import Inputs
from losa_cache.sources import Sources


def plan_store(inputs: Inputs, encoding: Encoding, *, shard_bytes: int = SHARD_BYTES) -> Layout:
    """Plan chunks and shards of an encoding, not yet compressed."""
    manifest = inputs.manifest
    planes, tokens, columns = encoding.stored_shape(len(manifest.points), inputs.backbone.tokens, manifest.width)
    return plan_layout(
        samples=len(inputs.samples) * manifest.views,
        layers=planes,
        tokens=tokens,
        columns=columns,
        itemsize=encoding.precision.itemsize,
        shard_bytes=shard_bytes,
    )


def sources_of(writer: CacheWriter, inputs: Inputs) -> Sources | None:
    """Give the lists of a cache's files; ``None`` where samples are not of single files."""
    if inputs.samples.file is None:
        return None
    return Sources(writer.path, writer.layout, writer.manifest, inputs.samples)


def begin(
    inputs: Inputs,
    path: Location,
    *,
    workers: int,
    options: dict[str, Any] | None,
    shard_bytes: int = SHARD_BYTES,
) -> CacheWriter:
    """Create a cache, its encoding fitted and its compression chosen on the first images; or open it to resume."""

    def fit() -> tuple[Manifest, Layout, Encoding]:
        precision = get_precision(inputs.manifest.precision)
        sample = calibrate(inputs, workers=workers, images=precision.images)
        encoding = sample.fit(precision)
        layout = plan_store(inputs, encoding, shard_bytes=shard_bytes)
        ratio = compression_ratio(encoding, sample.whole, layout)
        described = encoding.describe() | {"compressed": ratio and round(ratio, 3)}
        manifest = replace(inputs.manifest, encoding=described, options=options)
        return manifest, replace(layout, compressed=ratio is not None), encoding

    writer: type[CacheWriter] = RemoteWriter if isinstance(path, RemotePath) else CacheWriter
    samples, views = inputs.samples, inputs.manifest.views
    return writer(
        path,
        inputs.manifest,
        fit,
        labels=np.repeat(samples.labels, views),
        ids=[name for name in samples.ids for _ in range(views)],
        tail=dict(inputs.backbone.tail.state_dict()),
    )
