"""Caches where they lie and where they go: which there is, where another may be put, and who has the right to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from losa_cache.cache.half_done import require_whole
from losa_cache.cache.location import Location, locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.storage import StorePath, WriterLock, overlap, receipts_of
from losa_cache.cache.store import open_with
from losa_cache.cache.stores.local import LocalPath
from losa_cache.cache.writer import lock_cache
from losa_cache.errors import BusyError, UserError, no_cache
from losa_cache.files import reason, remedy
from losa_cache.lock import locked


def manifest_at(place: StorePath) -> Manifest:
    """Read the attributes of a cache, complete or not, from itself or from the copy beside it.

    Raises:
        UserError: if there is none: nothing else is ever moved or removed.
    """
    copy = MetadataFiles(place, receipts_of(place)).copy
    gone = isinstance(place, LocalPath) and not there(place)
    if gone or (not (place / ROOT).is_file() and not (copy / ROOT).is_file()):
        raise no_cache(place)
    try:
        return open_with(place, lambda: None, incomplete=True).manifest
    except UserError:
        with suppress(UserError):
            return open_with(copy, lambda: None, incomplete=True).manifest  # the store's own is damaged
        raise


def target_of(out: str | Location, name: str) -> StorePath:
    """Say where a cache goes: to a place, or, if a folder is there that is no cache, into it under its own name.

    Raises:
        UserError: for a place that can be none.
    """
    place = locate(out)
    if place.on_disk is not None and place.on_disk.is_dir() and not (place / ROOT).is_file():
        return locate(place / name)
    return place


def require_apart(place: StorePath, target: StorePath) -> None:
    """Refuse to put a cache where it lies, or into it or its receipts.

    Raises:
        UserError: if so.
    """
    if target.resolve() == place.resolve():
        raise UserError(f"{str(target)!r} is the cache itself: name another place.")
    if overlap(place, target):
        raise UserError(f"{str(target)!r} and {str(place)!r} would lie one in the other: name another place.")


def require_free(target: LocalPath) -> None:
    """Refuse a place that has anything of a cache but a lock, which this process has.

    Raises:
        UserError: naming what is there.
    """
    if there(target):
        raise UserError(f"{str(target)!r} is there already: name another place.")
    receipts = receipts_of(target)
    if any(name != "lock" for name in os.listdir(receipts)):
        raise UserError(f"{str(receipts)!r} is there already, of another cache: remove it or name another place.")


@contextmanager
def holding(place: StorePath) -> Iterator[WriterLock]:
    """Keep every writer out of a cache.

    Raises:
        UserError: if one is at work, a move or a removal was interrupted, or the place cannot be written.
    """
    require_no_links(place)
    try:
        taken = lock_cache(place)
    except BusyError as error:
        raise _busy(place) from error
    with taken:
        yield taken


@contextmanager
def holding_receipts(place: LocalPath) -> Iterator[None]:
    """Keep every writer out of a place whose cache an interrupted move or removal has left between two names.

    Raises:
        UserError: if one is at work.
    """
    require_no_links(place)

    def refuse() -> None:
        raise _busy(place)

    with locked(receipts_of(place) / "lock", refuse):
        yield


def _busy(place: StorePath) -> BusyError:
    return BusyError(f"another process is writing the cache {str(place)!r}: wait for it, or stop it.")


def require_no_links(place: StorePath) -> None:
    """Refuse receipts, or a lock among them, that lie elsewhere: a rename would leave them there.

    Raises:
        UserError: naming the link.
    """
    if place.on_disk is not None:
        receipts = receipts_of(place.on_disk)
        for path in (receipts, receipts / "lock"):
            if path.is_symlink():
                raise UserError(f"{str(path)!r} is a link: put what it leads to in its place.")


def require_begun_nowhere(*places: StorePath) -> None:
    """Refuse places that an interrupted move or removal has left in the middle.

    Raises:
        UserError: as :func:`require_whole`.
    """
    for place in places:
        if isinstance(place, LocalPath):
            require_whole(place)


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
