"""Caches for benchmarks/accuracy.py: extracted or ready ones, and parts of them with so many images a class."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import losa_cache as lc
from losa_cache.cache.layout import plan_layout
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.registry import extraction_seconds
from losa_cache.cache.shard import pack
from losa_cache.cache.writer import CacheWriter, lock_cache

AT_ONCE = 50


def seconds_of(cache: lc.ActivationCache) -> float | None:
    """Say how long a cache's extraction took: as noted, or as ``extract --json`` said beside the cache."""
    assert cache.path.on_disk is not None
    noted = extraction_seconds(cache.path, cache.manifest)
    said = cache.path.on_disk.with_suffix(".json")
    if noted is None and said.exists():
        found = json.loads(said.read_text() or "{}")
        noted = found.get("seconds") if found.get("extracted_now") == cache.layout.samples else None
    return noted


def shots(cache: lc.ActivationCache, count: int, seed: int) -> NDArray[np.int64] | None:
    """Draw so many samples of each class; ``None`` where no class has more, so that it would be all.

    Draws of one seed are nested: 5 are among the 20.
    """
    labels = cache.labels[:: cache.manifest.views]
    draw = np.random.default_rng(seed)
    chosen, fewer = [], False
    for label in range(len(cache.manifest.classes)):
        members = cache.samples[labels[cache.samples] == label]
        members = members[np.argsort([cache.sample_ids[sample] for sample in members.tolist()], kind="stable")]
        chosen.append(draw.permutation(members)[:count])
        fewer |= len(members) > count
    return np.sort(np.concatenate(chosen)) if fewer else None


def part(cache: lc.ActivationCache, samples: NDArray[np.int64], out: Path) -> lc.ActivationCache:
    """Write a cache of some samples of a cache of plain images: their stored bytes as they are."""
    manifest = cache.manifest
    assert manifest.views == 1, "one row a sample"
    ids = [cache.ids[sample] for sample in samples.tolist()]
    digest = hashlib.sha256("\n".join([manifest.identity, *ids]).encode()).hexdigest()
    dataset: dict[str, Any] = manifest.fields["dataset"] | {"fingerprint": f"sha256:{digest}"}
    _, planes, tokens, columns = cache.layout.shape
    layout = plan_layout(
        samples=len(samples), layers=planes, tokens=tokens, columns=columns, itemsize=cache.layout.itemsize
    )
    manifest = replace(
        manifest,
        fields=manifest.fields | {"dataset": dataset},
        encoding=manifest.encoding | {"compressed": None},
        options=None,
        complete=False,
        skipped=[],
    )
    encoding, reader = cache.encoding(), BlockReader(cache, manifest.points)
    with (
        lock_cache(out) as lock,
        CacheWriter.create(
            lock,
            manifest,
            layout,
            encoding,
            labels=cache.labels[samples],
            ids=ids,
            tail=cache.tail_tensors(),
        ) as writer,
    ):
        for first in range(0, len(samples), AT_ONCE):
            rows = samples[first : first + AT_ONCE]
            targets = [
                torch.empty((len(rows), tokens, columns), dtype=cache.precision.stored_dtype) for _ in range(planes)
            ]
            reader.read(rows, targets)
            values = torch.stack(targets, 1).view(torch.uint8).numpy()
            for row, sample in enumerate(values, start=first):
                writer.append(row, pack(sample, layout))
        reader.close()
        return writer.finish()
