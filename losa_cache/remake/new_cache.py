"""A new cache that is made of others: begun or gone on with, and finished."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding
from losa_cache.cache.registry import knows, remember
from losa_cache.cache.storage import StorePath, overlap
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.errors import UserError
from losa_cache.remake.same_values import require_same_values, with_digests
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import TargetSet

Fitted = tuple[Manifest, Layout, Encoding]


def require_other(place: StorePath, sources: Sequence[ActivationCache]) -> None:
    """Refuse to write a cache where one of those lies that it is made of, or into it or its receipts.

    Raises:
        UserError: if so.
    """
    if any(overlap(place, source.path) for source in sources):
        raise UserError(f"{str(place)!r} is the cache itself, or lies in it or its receipts: choose another --out.")


@contextmanager
def new_cache(
    place: StorePath,
    manifest: Manifest,
    fit: Callable[[], Fitted],
    *,
    sources: Sequence[ActivationCache],
    copied: Encoding | None,
    labels: NDArray[np.int64],
    ids: list[str],
    tail: dict[str, Tensor],
) -> Iterator[CacheWriter]:
    """Begin a cache at a place, or go on with it, under its lock.

    Args:
        place: of the cache.
        manifest: what it must hold.
        fit: gives manifest, layout and encoding of a new one.
        sources: that it is made of, in the order of ``made_from``.
        copied: their encoding, if stored values are copied.
        labels, ids, tail: as of ``CacheWriter.create``.

    Raises:
        UserError: if it holds something else, or values of other sources, another process writes it, or it cannot be
            written.
    """
    manifest = with_digests(manifest, sources)
    with lock_cache(place) as lock:
        if lock.begun():
            writer = CacheWriter.resume(lock, manifest, labels=labels, ids=ids, tail=tail)
            if open_cache(place, incomplete=True).ids != ids:
                raise UserError(f"{str(place)!r} holds other samples, or these in another order: choose another --out.")
            require_same_values(writer, manifest, copied)
        else:
            fitted, layout, encoding = fit()
            fitted = replace(fitted, made_from=manifest.made_from)
            writer = CacheWriter.create(lock, fitted, layout, encoding, labels=labels, ids=ids, tail=tail)
        with writer:
            yield writer


def finished(place: StorePath, targets: Sequence[TargetSet], sources: Sequence[ActivationCache]) -> ActivationCache:
    """Write the target sets into a complete new cache that lacks them, list it for this user, and open it.

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
