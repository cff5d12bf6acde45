"""``remove``: a cache, its receipts and its note: first it is no cache any more, then its files are deleted."""

import json
import os
from contextlib import suppress

from losa_cache.cache.checked import sha256
from losa_cache.cache.half_done import REMOVAL_NOTE, REMOVED, Removal, note_removal, removal_in
from losa_cache.cache.local_copy import shard_digests
from losa_cache.cache.location import Location, locate
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.registry import forget
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import BusyError, UserError
from losa_cache.files import clear, sync_folder
from losa_cache.relocate.place import holding, holding_receipts, manifest_at, require_begun_nowhere, saying, there


def remove_cache(cache: ActivationCache | str | Location) -> None:
    """Delete a cache, complete or not, with its receipts.

    On a file system both are renamed before anything is deleted. On a server the root's ``zarr.json`` goes first. So at
    no time is there a cache that lacks files, and an interrupted call can be repeated. A process that is reading the
    cache fails at the next file that it opens.

    Args:
        cache: the cache, or its place.

    Raises:
        UserError: if there is none, a process is writing it, or its files cannot be deleted.
    """
    place = cache.path if isinstance(cache, ActivationCache) else locate(cache)
    with saying(f"removing {str(place)!r}"):
        if isinstance(place, LocalPath) and half_removed(place):
            _finish(place)
        else:
            require_begun_nowhere(place)
            manifest_at(place)  # on a server from its copy, if an interrupted call has removed the root
            require_removable(place)
            with holding(place):
                take_away(place)
    forget(place)


def half_removed(place: StorePath) -> bool:
    """Whether nothing is at a place, since an interrupted call has begun to remove its cache."""
    if not isinstance(place, LocalPath) or there(place):
        return False
    return any(map(_ours, _removed(place))) or removal_in(receipts_of(place)) is not None


def removal_of(place: StorePath) -> Removal | None:
    """Read what an interrupted call has noted of the cache that it was removing."""
    if not isinstance(place, LocalPath):
        return None
    notes = (removal_in(folder) for folder in (*_removed(place), receipts_of(place)))
    return next((note for note in notes if note is not None), None)


def noted(place: StorePath) -> Removal:
    """Give what is noted of a cache before it is removed: copies of it agree in the digest, and no other cache does."""
    digest = None
    with suppress(UserError, DamagedShardError):
        cache = open_cache(place)
        if cache.digests is not None:
            digest = sha256(json.dumps([dict(sorted(cache.digests.items())), shard_digests(cache)]).encode())
    return Removal(identity=manifest_at(place).identity, digest=digest)


def require_removable(place: StorePath) -> None:
    """Refuse a cache that could not be removed, before anything is changed.

    Raises:
        UserError: if its server cannot list files, or the names that its folders need are too long or taken.
    """
    if not place.lists:
        raise UserError(
            f"{str(place)!r} lies on a server that cannot list files: remove it by that server's own tools."
        )
    if isinstance(place, LocalPath):
        for folder in _removed(place):
            if len(os.fsencode(folder.name)) > os.pathconf(place.parent, "PC_NAME_MAX"):
                raise UserError(
                    f"{place.name!r} is too long a name: the cache is named {folder.name!r} while it is removed: "
                    "losa-cache move it to a shorter name first."
                )
            if there(folder) and not _ours(folder):
                raise UserError(
                    f"{str(folder)!r} is in the way, and holds no cache that was being removed: give it another name."
                )


def take_away(place: StorePath) -> None:
    """Delete a cache that can be removed (:func:`require_removable`) and whose lock this process has."""
    if isinstance(place, LocalPath):
        _take_local(place)
    else:
        _take_objects(place)


def _removed(place: LocalPath) -> list[LocalPath]:
    return [one.with_name(one.name + REMOVED) for one in (place, receipts_of(place))]


def _ours(folder: LocalPath) -> bool:
    """Whether an interrupted call has left a folder; its note goes last."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return removal_in(folder) is not None or not os.listdir(folder)


def _take_local(place: LocalPath) -> None:
    removed, note = _removed(place), noted(place)
    for left in removed:
        _clear(left)
    folders = place, receipts_of(place)
    for folder in folders:
        note_removal(folder, note)
    for folder, name in zip(folders, removed, strict=True):
        folder.rename(name)
    sync_folder(place.parent)
    forget(place)
    for left in removed:
        _clear(left)
    sync_folder(place.parent)


def _finish(place: LocalPath) -> None:
    for left in filter(_ours, _removed(place)):
        _clear(left)
    with suppress(BusyError):  # another cache is being begun there
        _finish_receipts(place)
    sync_folder(place.parent)


def _finish_receipts(place: LocalPath) -> None:
    receipts = receipts_of(place)
    if there(receipts):
        with holding_receipts(place):
            if removal_in(receipts) is not None:  # it was killed between the two renames
                _clear(receipts)
            elif os.listdir(receipts) == ["lock"]:  # of a writer that never began
                clear(receipts)


def _clear(folder: LocalPath) -> None:
    """Remove a folder that holds a note, the note last."""
    if there(folder):
        for name in os.listdir(folder):
            if name != REMOVAL_NOTE:
                clear(folder / name)
        (folder / REMOVAL_NOTE).unlink(missing_ok=True)
        folder.rmdir()


def _take_objects(place: StorePath) -> None:
    receipts, copy = receipts_of(place), MetadataFiles(place, receipts_of(place)).copy
    forget(place)
    with suppress(FileNotFoundError):
        (place / ROOT).unlink()
    for name, _ in list(place.scan()):
        (place / name).unlink(missing_ok=True)
    first = copy.name + "/"
    names = [name for name, _ in receipts.scan() if name != "lock"]
    for name in sorted(names, key=lambda name: (name == first + ROOT, name.startswith(first), name)):
        (receipts / name).unlink(missing_ok=True)
