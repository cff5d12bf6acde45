"""``copy``: a cache and its receipts, bit for bit, to another place; every chunk is checked on the way."""

import os
from collections.abc import Callable

from losa_cache.cache.health import examine
from losa_cache.cache.local_copy import LocalCopy, shard_digests
from losa_cache.cache.location import Location, locate
from losa_cache.cache.metadata_files import ROOT
from losa_cache.cache.object_lock import ObjectLock
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.registry import carry
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import StorePath, WriterLock, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.files import clear
from losa_cache.outside import UnreadableError
from losa_cache.relocate.place import (
    holding,
    require_apart,
    require_begun_nowhere,
    require_free,
    saying,
    target_of,
    there,
)
from losa_cache.relocate.upload import Upload
from losa_cache.sources import list_path

OTHERWISE = "copy it to another disk"


def copy_cache(
    cache: ActivationCache | str | Location,
    out: str | Location,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> ActivationCache:
    """Copy a finished cache, from any store to any other.

    A copy on a file system has a temporary name until all of it is there; on a server the root's ``zarr.json`` comes
    last. An interrupted copy is gone on with, and a finished one is returned.

    Args:
        cache: a complete cache, or its place.
        out: where the copy goes; into a folder that is no cache, under the name that it has.
        progress: is called with the share of the bytes that were copied.

    Returns:
        the copy.

    Raises:
        UserError: if there is another cache, a shard is damaged, or the place cannot be written.
    """
    place = cache.path if isinstance(cache, ActivationCache) else locate(cache)
    require_begun_nowhere(place)
    source = open_cache(place)  # as it is now
    target = target_of(out, place.name)
    require_apart(place, target)
    with saying(f"copying {str(source.path)!r} to {str(target)!r}"):
        if target.is_folder(ROOT):
            copied = require_copy(source, target)
        else:
            with holding(target) as lock:
                _copy(source, target, lock, progress)
            copied = open_cache(target)
    carry(source.path, target, source.manifest)
    return copied


def require_copy(source: ActivationCache, target: StorePath) -> ActivationCache:
    """Open what is at a place if it is a copy of a cache, every chunk of which is intact.

    Raises:
        UserError: if it is anything else.
    """
    try:
        found = open_cache(target)
        same = source.digests is not None and found.digests == source.digests
        same = same and shard_digests(found) == shard_digests(source)
    except (UserError, DamagedShardError):
        same = False
    if not same:
        raise UserError(
            f"{str(target)!r} is there already, and is no copy of {str(source.path)!r}: name another place."
        )
    _, damage = examine(target)
    if damage:
        what = damage.files[0] if damage.files else f"shard {damage.shards[0].shard}: {damage.shards[0].reason}"
        raise UserError(
            f"{str(target)!r} is there already, a copy of {str(source.path)!r} that is damaged ({what}): remove it "
            "and run the same command again."
        )
    return found


def _copy(source: ActivationCache, target: StorePath, lock: WriterLock, progress: Callable[[float], None]) -> None:
    if isinstance(lock, ObjectLock):
        Upload(source, lock, progress).make()
        return
    assert isinstance(target, LocalPath)
    partial = target.with_name(target.name + ".partial")
    lock.sweep()
    if not there(partial):
        require_free(target)
    _clear_others(source, target, partial)
    for shard in range(source.layout.shards):
        try:
            content = list_path(source.path, shard).read()
        except (FileNotFoundError, UnreadableError):  # of an older cache, or of samples that lie in no files
            break
        list_path(target, shard).write(content)
    LocalCopy(source, target, progress, OTHERWISE).make()


def _clear_others(source: ActivationCache, target: LocalPath, partial: LocalPath) -> None:
    """Remove what an interrupted copy left in part, or all of it if it may be of another cache."""
    if partial.is_symlink():
        clear(partial)
    for leftover in list(partial.rglob("*.partial")):
        clear(leftover)
    identity = source.manifest.identity
    try:
        for shard, digest in enumerate(shard_digests(source)):
            if Receipt(receipts_of(target), shard, identity).read()["digest"] != digest:
                raise DamagedShardError
    except DamagedShardError:
        for name in os.listdir(receipts_of(target)):
            if name != "lock":
                clear(receipts_of(target) / name)
        clear(partial)
    partial.mkdir(exist_ok=True)  # from here on, the receipts are those of an interrupted copy
