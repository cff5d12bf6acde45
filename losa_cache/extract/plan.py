"""Pure planning of an extraction: what will be in the cache, in which order, in which batches."""

from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.backbone import Backbone
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError

BATCH_BYTES = 512 * 1024 * 1024
MAX_BATCH = 64
TAP = "block"


def permute(count: int, *, seed: int, limit: int | None) -> NDArray[np.int64]:
    """Draw the order of the samples, so that contiguous reads are already shuffled; keep the first ``limit``.

    Raises:
        UserError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: it must be at least 1.")
    return np.random.default_rng(seed).permutation(count)[:limit].astype(np.int64)


def describe(
    backbone: Backbone,
    samples: Samples,
    *,
    layers: list[int],
    precision: str,
    compute: torch.dtype,
    seed: int,
    limit: int | None,
) -> Manifest:
    """Write down everything that decides the numbers, and what stage two needs to know."""
    return Manifest(
        fields={
            "backbone": {"name": backbone.name, "weights": backbone.weights},
            "input": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(backbone.input).items()},
            "tap": TAP,
            "layers": layers,
            "precision": precision,
            "compute": str(compute).removeprefix("torch."),
            "dataset": {"name": samples.name, "split": samples.split, "fingerprint": samples.fingerprint},
            "sampling": {"seed": seed, "limit": limit},
        },
        tokens={"total": backbone.tokens, "prefix": backbone.prefix_tokens, "grid": list(backbone.grid)},
        width=backbone.width,
        depth=backbone.depth,
        classes=list(samples.classes),
        tail=backbone.tail.config,
        software={name: version(name) for name in ("losa-cache", "torch", "timm", "zarr")},
    )


def cache_name(manifest: Manifest) -> str:
    """Name a cache by what one looks for and the start of its identity."""
    backbone, dataset = manifest.fields["backbone"]["name"], manifest.fields["dataset"]
    layers = "" if len(manifest.layers) == manifest.depth else f"-{len(manifest.layers)}layers"
    identity = manifest.identity.removeprefix("sha256:")[:8]
    return f"{backbone}-{dataset['name']}-{dataset['split']}{layers}-{manifest.precision}-{identity}.zarr"


def default_batch(layout: Layout) -> int:
    """Choose a batch whose activations stay below 512 MiB, at most 64."""
    return max(1, min(MAX_BATCH, BATCH_BYTES // layout.sample_bytes))


def batches(layout: Layout, missing: Iterable[int], batch_size: int) -> list[tuple[range, frozenset[int]]]:
    """Cut the rows of missing shards into batches.

    Batches lie on a fixed grid, so that a sample meets the same neighbours, and rounds the same way, whether or not
    the extraction was interrupted.

    Returns:
        for each batch its rows, and those of them that belong to missing shards.
    """
    wanted = set(missing)
    grid = (range(at, min(at + batch_size, layout.samples)) for at in range(0, layout.samples, batch_size))
    planned = ((rows, frozenset(row for row in rows if row // layout.shard_samples in wanted)) for rows in grid)
    return [(rows, keep) for rows, keep in planned if keep]
