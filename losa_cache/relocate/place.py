"""Caches where they lie and where they go: which there is, where another may be put, and who has the right to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from losa_cache.cache.location import Location, locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.storage import StorePath, WriterLock, receipts_of
from losa_cache.cache.store import open_with
from losa_cache.cache.writer import lock_cache
from losa_cache.errors import BusyError, UserError, no_cache
from losa_cache.files import reason, remedy


def manifest_at(place: StorePath) -> Manifest:
    """Read the attributes of a cache, complete or not, from itself or from the copy beside it.

    Raises:
        UserError: if there is none: nothing else is ever moved or removed.
    """
    if not (place / ROOT).is_file() and not (MetadataFiles(place, receipts_of(place)).copy / ROOT).is_file():
        raise no_cache(place)
    try:
        return open_with(place, lambda: None, incomplete=True).manifest
    except UserError:
        copy = MetadataFiles(place, receipts_of(place)).copy
        if not (copy / ROOT).is_file():
            raise
        return open_with(copy, lambda: None, incomplete=True).manifest  # the store's own is damaged


def target_of(out: str | Location, name: str) -> StorePath:
    """Say where a cache goes: to a place, or, if a folder is there that is no cache, into it under its own name.

    Raises:
        UserError: for a place that can be none.
    """
    place = locate(out)
    if place.on_disk is not None and place.on_disk.is_dir() and not (place / ROOT).is_file():
        return locate(place / name)
    return place


@contextmanager
def holding(place: StorePath) -> Iterator[WriterLock]:
    """Keep every writer out of a cache.

    Raises:
        UserError: if one is at work, or the place cannot be written.
    """
    try:
        lock = lock_cache(place)
    except BusyError as error:
        raise UserError(f"another process is writing the cache {str(place)!r}: wait for it, or stop it.") from error
    with lock:
        yield lock


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Say in a sentence what the file system refused.

    Args:
        what: failed, as the beginning of a sentence.

    Raises:
        UserError: for an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} failed ({reason(error)}): {remedy(error)} and run the same command again.") from error


def there(*places: StorePath) -> bool:
    """Whether there is anything at one of these places of a file system."""
    return any(place.on_disk is not None and os.path.lexists(place.on_disk) for place in places)
