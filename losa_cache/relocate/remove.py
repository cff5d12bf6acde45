"""``remove``: a cache, its receipts and its note: first it is no cache any more, then its files are deleted."""

from contextlib import suppress

from losa_cache.cache.location import Location, locate
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.registry import forget
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.store import ActivationCache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError, no_cache
from losa_cache.files import clear, sync_folder
from losa_cache.relocate.place import holding, manifest_at, saying, there

REMOVED = ".removed"


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
        if isinstance(place, LocalPath):
            _remove_local(place)
        else:
            _remove_objects(place)
    forget(place)


def half_removed(place: StorePath) -> bool:
    """Whether an interrupted call has begun to remove a cache of this place."""
    return there(*_removed(place))


def _removed(place: StorePath) -> list[StorePath]:
    return [one.with_name(one.name + REMOVED) for one in (place, receipts_of(place))]


def _remove_local(place: LocalPath) -> None:
    removed = [LocalPath(str(one)) for one in _removed(place)]
    if there(place):
        manifest_at(place)
        with holding(place):
            for left in removed:
                clear(left)
            place.rename(removed[0])
            receipts_of(place).rename(removed[1])
            sync_folder(place.parent)
            forget(place)
            for left in removed:
                clear(left)
    elif there(*removed):
        if there(removed[0], removed[1]) and there(receipts_of(place)):  # killed between the two
            with holding(place):
                receipts_of(place).rename(removed[1])
        for left in removed:
            clear(left)
    else:
        raise no_cache(place)
    sync_folder(place.parent)


def _remove_objects(place: StorePath) -> None:
    if not place.lists:
        raise UserError(
            f"{str(place)!r} lies on a server that cannot list files: remove it by that server's own tools."
        )
    manifest_at(place)  # from its copy, if an interrupted call has removed the root
    receipts, copy = receipts_of(place), MetadataFiles(place, receipts_of(place)).copy
    with holding(place):
        forget(place)
        with suppress(FileNotFoundError):
            (place / ROOT).unlink()
        for name, _ in list(place.scan()):
            (place / name).unlink(missing_ok=True)
        first = copy.name + "/"
        names = [name for name, _ in receipts.scan() if name != "lock"]
        for name in sorted(names, key=lambda name: (name == first + ROOT, name.startswith(first), name)):
            (receipts / name).unlink(missing_ok=True)
