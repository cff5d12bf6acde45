"""A copy of a cache on a local disk: it is made once, every chunk is checked, and it can be resumed."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from losa_cache.cache.checked import REPAIR
from losa_cache.cache.local_copy import LocalCopy, shard_digests
from losa_cache.cache.metadata_files import ROOT, LocalMetadata
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.cache.target_arrays import TARGETS
from losa_cache.errors import UserError
from losa_cache.files import reason, remedy
from losa_cache.lock import locked

log = logging.getLogger(__name__)


def stage_cache(
    cache: ActivationCache, folder: str | Path, *, progress: Callable[[float], None] = lambda _: None
) -> ActivationCache:
    """Copy a cache to ``folder/<name>-<identity>.zarr``, its receipts beside it, and open the copy.

    If the copy is there already, it is opened; where target sets were added to the cache or removed since, the copy
    follows. If it was begun, the missing shards are copied. If two processes make the same copy, the second waits for
    the first.

    Args:
        cache: complete, on a server or a slow disk.
        folder: folder on a local disk.
        progress: is called with the share of the bytes that were copied.

    Raises:
        UserError: if the folder cannot be written or is too small, a shard is damaged or missing, or the server fails.
    """
    identity = cache.manifest.identity.partition(":")[2][:12]
    target = LocalPath(folder) / f"{cache.path.name.removesuffix('.zarr')}-{identity}.zarr"
    try:
        receipts_of(target).mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if target.exists():
                _bring_up_to_date(cache, target)
            else:
                LocalCopy(cache, target, progress, "choose another --stage, or leave it out").make()
    except OSError as error:
        raise UserError(
            f"staging {str(cache.path)!r} in {str(folder)!r} failed ({reason(error)}): what is copied is kept; "
            f"{remedy(error)}, or choose another --stage."
        ) from error
    return open_cache(target)


def _bring_up_to_date(cache: ActivationCache, target: LocalPath) -> None:
    """Have a copy follow the cache in its target sets, and refuse one that differs in anything else.

    A cache extracted again from replaced files may have the same name.

    Raises:
        UserError: naming it.
    """
    identity = cache.manifest.identity
    metadata = LocalMetadata(target, receipts_of(target))
    if metadata.copied and metadata.left_halfway:  # it was killed while it followed: nothing else is put back here
        metadata.repair()
    copied = open_cache(target)
    same = copied.manifest.identity == identity and _but_for_targets(copied) == _but_for_targets(cache)
    try:
        if same and cache.digests is None and copied.manifest.targets == cache.manifest.targets:
            return
        if same and cache.digests is not None and shard_digests(copied) == shard_digests(cache):
            if copied.digests != cache.digests:
                metadata.follow(cache.metadata, cache.digests)
            return
    except DamagedShardError as error:
        raise UserError(
            f"a shard of {str(cache.path)!r}, or of {str(target)!r}, is damaged ({error}): {REPAIR}."
        ) from error
    raise UserError(
        f"{str(target)!r} is not a copy of {str(cache.path)!r} as it is now: delete it and "
        f"{str(receipts_of(target))!r}, or choose another --stage."
    )


def _but_for_targets(cache: ActivationCache) -> dict[str, str] | None:
    """Give the sha256 of the metadata files that do not depend on target sets."""
    if cache.digests is None:
        return None
    return {
        name: digest for name, digest in cache.digests.items() if name != ROOT and not name.startswith(f"{TARGETS}/")
    }


def _alone(target: LocalPath) -> AbstractContextManager[int]:
    def busy() -> None:
        log.warning("another process is copying %s: waiting for it.", target)

    return locked(receipts_of(target) / "lock", busy)
