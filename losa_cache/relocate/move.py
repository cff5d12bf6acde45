"""``move``: a cache and its receipts to another place: renamed, or copied, checked and removed."""

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack

from losa_cache.cache.half_done import MOVE_NOTE, Move, move_in, moving_name, note_move
from losa_cache.cache.location import Location, locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.metadata_files import ROOT
from losa_cache.cache.registry import carry, forget
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.files import sync_folder
from losa_cache.relocate.copy import copy_cache
from losa_cache.relocate.place import (
    holding,
    holding_receipts,
    manifest_at,
    require_apart,
    require_begun_nowhere,
    require_free,
    saying,
    target_of,
    there,
)
from losa_cache.relocate.remove import half_removed, noted, removal_of, remove_cache, require_removable, take_away


def move_cache(
    cache: ActivationCache | str | Location,
    out: str | Location,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> ActivationCache:
    """Move a cache with its receipts, and let this user's list of caches follow.

    On one file system it is renamed, complete or not. Otherwise a complete cache is copied, every chunk of the copy is
    checked, and the cache is removed then; nobody can write it meanwhile. An interrupted call can be repeated.

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
    require_apart(place, target)
    with saying(f"moving {str(place)!r} to {str(target)!r}"):
        if isinstance(place, LocalPath) and isinstance(target, LocalPath) and _begun(place, target):
            return _finish(place, target)
        require_begun_nowhere(target)
        if half_removed(place):
            return _removed(place, target)
        require_begun_nowhere(place)
        if isinstance(place, LocalPath) and isinstance(target, LocalPath) and _renamed(place, target):
            return _finish(place, target)
        return _copied(place, target, progress)


def _removed(place: StorePath, target: StorePath) -> ActivationCache:
    """End the removal of a cache if the target is its copy.

    Raises:
        UserError: if it is not known to be one.
    """
    removal = removal_of(place)
    if removal is None or removal["digest"] is None or not target.is_folder(ROOT) or noted(target) != removal:
        raise UserError(
            f"a removal of {str(place)!r} was interrupted, and {str(target)!r} is no copy of it: run losa-cache "
            f"remove {str(place)!r} to end it."
        )
    remove_cache(place)
    return open_cache(target)


def _copied(place: StorePath, target: StorePath, progress: Callable[[float], None]) -> ActivationCache:
    """Copy a cache and remove it, under its lock."""
    manifest_at(place)
    require_removable(place)
    with holding(place):
        moved = copy_cache(place, target, progress=progress)
        take_away(place)
    forget(place)
    return moved


def _renamed(place: LocalPath, target: LocalPath) -> bool:
    """Give a cache the name under which it is no cache; ``False`` if the places are on two file systems.

    So nobody finds one without its receipts.
    """
    manifest_at(place)
    moving = moving_name(target)
    if there(moving):
        raise UserError(f"{str(moving)!r} is in the way, and holds no cache on its way here: give it another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    if _device(place) != _device(target):
        return False
    if there(target):
        raise UserError(f"{str(target)!r} is there already: name another place.")
    with holding(place), holding(target) as own:
        own.sweep()
        require_free(target)
        for folder in (place, receipts_of(place)):
            note_move(folder, Move(source=str(place), target=str(target)))
        try:
            place.rename(moving)
        except OSError as error:
            for folder in (place, receipts_of(place)):
                (folder / MOVE_NOTE).unlink(missing_ok=True)
            if error.errno == errno.EXDEV:
                return False
            raise
    return True


def _begun(place: LocalPath, target: LocalPath) -> bool:
    """Whether an interrupted call has taken the name from the cache, and has not ended."""
    move = Move(source=str(place), target=str(target))
    return move_in(moving_name(target)) == move or (not there(place) and move_in(target) == move)


def _finish(place: LocalPath, target: LocalPath) -> ActivationCache:
    """Give the receipts their new name, then the store."""
    old, new, moving = receipts_of(place), receipts_of(target), moving_name(target)
    with ExitStack() as locks:
        if there(moving):
            if move_in(old) is not None:
                locks.enter_context(holding_receipts(place))
                new.mkdir(exist_ok=True)
                locks.enter_context(holding_receipts(target))
                require_free(target)
                (new / "lock").unlink()
                old.rename(new)
            moving.rename(target)
            for folder in {place.parent, target.parent}:
                sync_folder(folder)
    _follow(place, target, manifest_at(target))
    for folder in (new, target):  # the last is the one that a repeated call looks for
        (folder / MOVE_NOTE).unlink(missing_ok=True)
    return open_cache(target, incomplete=True)


def _follow(place: LocalPath, target: LocalPath, manifest: Manifest) -> None:
    """Let the list of caches follow."""
    if manifest.complete:
        carry(place, target, manifest)
    if not there(place):
        forget(place)


def _device(place: StorePath) -> int:
    assert place.on_disk is not None
    return os.stat(place.on_disk.parent).st_dev
