"""``move``: a cache and its receipts to another place: renamed, or copied, checked and removed."""

import errno
import os
from collections.abc import Callable

from losa_cache.cache.location import Location, locate
from losa_cache.cache.metadata_files import ROOT
from losa_cache.cache.registry import carry, forget
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError, no_cache
from losa_cache.files import sync_folder
from losa_cache.relocate.copy import copy_cache
from losa_cache.relocate.place import holding, manifest_at, saying, target_of, there
from losa_cache.relocate.remove import half_removed, remove_cache

MOVING = ".moving"


def move_cache(
    cache: ActivationCache | str | Location,
    out: str | Location,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> ActivationCache:
    """Move a cache with its receipts, and let this user's list of caches follow.

    On one file system it is renamed, complete or not. Otherwise a complete cache is copied, every chunk of the copy is
    checked, and the cache is removed then. An interrupted call can be repeated.

    Args:
        cache: the cache, or its place.
        out: where it goes; into a folder that is no cache, under the name that it has.
        progress: is called with the share of the bytes that were copied.

    Returns:
        the cache at its new place.

    Raises:
        UserError: if there is another cache, a process is writing this one, or a place cannot be written.
    """
    place = cache.path if isinstance(cache, ActivationCache) else locate(cache)
    target = target_of(out, place.name)
    if target.resolve() == place.resolve():
        raise UserError(f"{str(target)!r} is the cache itself: name another place.")
    with saying(f"moving {str(place)!r} to {str(target)!r}"):
        if isinstance(place, LocalPath) and isinstance(target, LocalPath) and _renamed(place, target):
            moved = open_cache(target, incomplete=True)
            if moved.manifest.complete:
                carry(place, target, moved.manifest)
            forget(place)
            return moved
    if half_removed(place) and target.is_folder(ROOT):
        remove_cache(place)
        return open_cache(target)
    moved = copy_cache(place, target, progress=progress)
    remove_cache(place)
    return moved


def _renamed(place: LocalPath, target: LocalPath) -> bool:
    """Rename a cache, or go on where an interrupted call was; ``False`` if the places are on two file systems.

    Under a third name the store is no cache, so that nobody finds one without its receipts.
    """
    moving = target.with_name(target.name + MOVING)
    if not there(place) and there(moving):
        _finish(place, target, moving)
        return True
    if not there(place):
        if half_removed(place):
            return False
        raise no_cache(place)
    manifest_at(place)
    if there(target):
        if _device(place) != _device(target):
            return False  # it may be the copy of an interrupted call
        raise UserError(f"{str(target)!r} is there already: name another place.")
    if there(receipts_of(target)) and any(name != "lock" for name, _ in receipts_of(target).scan()):
        if _device(place) != _device(target):
            return False
        raise UserError(
            f"{str(receipts_of(target))!r} is there already, of another cache: remove it or name another place."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with holding(place):
        try:
            place.rename(moving)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        _finish(place, target, moving)
    return True


def _finish(place: LocalPath, target: LocalPath, moving: LocalPath) -> None:
    old, new = receipts_of(place), receipts_of(target)
    if there(old):
        if there(new / "lock"):  # of a writer that never began
            (new / "lock").unlink()
            new.rmdir()
        old.rename(new)
    moving.rename(target)
    for folder in {place.parent, target.parent}:
        sync_folder(folder)


def _device(place: StorePath) -> int:
    assert place.on_disk is not None
    return os.stat(place.on_disk.parent).st_dev
