"""A copy of a cache on a local disk: it is made once, every chunk is checked, and it can be resumed."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np

from losa_cache.cache.byte_source import ByteSource, CutShortError
from losa_cache.cache.checked import REPAIR
from losa_cache.cache.health import ShardCheck, check_shard
from losa_cache.cache.metadata_files import LIST, ROOT, LocalMetadata
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import receipts_of, shard_path
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.cache.target_arrays import TARGETS
from losa_cache.errors import UserError
from losa_cache.files import publish, reason, remedy, sync_tree, write_whole
from losa_cache.lock import lock, unlock
from losa_cache.machine.sizes import readable_bytes

PIECE_BYTES = 4 * 1024 * 1024
PIECES, REMOTE_PIECES = 4, 16  # read at once
SHARDS = 2  # one is checked while the next is copied

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
                _Copy(cache, target, progress).make()
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
    identity, shards = cache.manifest.identity, range(cache.layout.shards)

    def content(one: ActivationCache) -> list[str]:
        with ThreadPoolExecutor(REMOTE_PIECES, "receipt") as threads:
            return list(threads.map(lambda shard: Receipt(one.receipts, shard, identity).read()["digest"], shards))

    metadata = LocalMetadata(target, receipts_of(target))
    if metadata.copied and metadata.left_halfway:  # it was killed while it followed: nothing else is put back here
        metadata.repair()
    copied = open_cache(target)
    same = copied.manifest.identity == identity and _but_for_targets(copied) == _but_for_targets(cache)
    try:
        if same and cache.digests is None and copied.manifest.targets == cache.manifest.targets:
            return
        if same and cache.digests is not None and content(copied) == content(cache):
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


@contextmanager
def _alone(target: LocalPath) -> Iterator[None]:
    file = receipts_of(target) / "lock"
    handle = lock(file)
    if handle is None:
        log.warning("another process is copying %s: waiting for it.", target)
        handle = lock(file, wait=True)
    assert handle is not None
    try:
        yield
    finally:
        unlock(handle)


class _Copy:
    """One cache that is copied to one folder."""

    def __init__(self, cache: ActivationCache, target: LocalPath, progress: Callable[[float], None]) -> None:
        self.cache, self.target, self.progress = cache, target, progress
        self.partial = target.with_name(target.name + ".partial")
        self._identity = cache.manifest.identity
        self.sizes = cache.shard_sizes()
        if lost := sorted(set(range(cache.layout.shards)) - self.sizes.keys()):
            raise self._damaged(lost[0], "it is missing")
        self.lacking = [shard for shard in self.sizes if not self._done(shard)]
        self._left = sum(self.sizes[shard] for shard in self.lacking)
        self._guard = Lock()

    def make(self) -> None:
        """Copy what is missing, then give the copy its name."""
        self._require_room()
        with ThreadPoolExecutor(REMOTE_PIECES if self.cache.remote else PIECES, "piece") as pieces:
            if self.cache.digests is not None:  # otherwise it came without its receipts
                list(pieces.map(self._copy_receipt, range(self.cache.layout.shards)))
            self._copy_metadata()
            with ThreadPoolExecutor(SHARDS, "shard") as shards:
                list(shards.map(lambda shard: self._copy_shard(shard, pieces), self.lacking))
        sync_tree(self.partial)
        publish(self.partial, self.target)

    def _copy_metadata(self) -> None:
        """Copy the metadata files, and their copy if there is one."""
        names, metadata = self.cache.metadata.names(), self.cache.metadata
        for name in names:
            _write(self.partial / name, (metadata.store / name).read())
        if metadata.copied:
            for name in (*names, LIST):
                _write(receipts_of(self.target) / "core" / name, (metadata.copy / name).read())
            LocalMetadata(self.partial, receipts_of(self.target)).repair()

    def _copy_receipt(self, shard: int) -> None:
        source = Receipt(self.cache.receipts, shard, self._identity)
        target = Receipt(receipts_of(self.target), shard, self._identity)
        try:
            target.write(source.read())
        except DamagedShardError as error:
            raise self._damaged(shard, str(error)) from error
        if (listed := source.listed()) is not None:
            target.write_list(listed)

    def _copy_shard(self, shard: int, pieces: ThreadPoolExecutor) -> None:
        final = self._path(shard)
        file = final.with_name(final.name + ".partial")
        try:
            self._fetch(self.cache.open_shard(shard), file, pieces)
        except CutShortError as error:
            raise self._damaged(shard, "it is cut short") from error
        layout, skipped = self.cache.layout, self.cache.manifest.skipped_rows
        receipt = None if self.cache.digests is None else Receipt(receipts_of(self.target), shard, self._identity)
        found = check_shard(ShardCheck(shard, file, receipt, layout, skipped & frozenset(layout.rows(shard))))
        if found.damage is not None:
            file.unlink()
            raise self._damaged(shard, found.damage.reason)
        if receipt is not None and found.checksums is not None and not found.listed:
            receipt.write_list(found.checksums)
        publish(file, final)

    def _fetch(self, source: ByteSource, file: Path, pieces: ThreadPoolExecutor) -> None:
        with open(file, "wb") as out:

            def fetch(offset: int) -> int:
                piece = np.empty(min(PIECE_BYTES, source.size - offset), dtype=np.uint8)
                source.read([(offset, piece.nbytes, [piece])])
                written = 0
                while written < piece.nbytes:
                    written += os.pwrite(out.fileno(), piece[written:].data, offset + written)
                return piece.nbytes

            under_way = [pieces.submit(fetch, offset) for offset in range(0, source.size, PIECE_BYTES)]
            try:
                for piece in under_way:
                    self._advance(piece.result())
            finally:  # none may write to the file once it is closed
                for piece in under_way:
                    piece.cancel()
                wait(under_way)
            os.fsync(out.fileno())

    def _advance(self, count: int) -> None:
        with self._guard:
            self._left -= count
            self.progress(1 - self._left / sum(self.sizes.values()))

    def _path(self, shard: int) -> LocalPath:
        return shard_path(self.partial, self.cache.manifest.fields["tap"], shard)

    def _done(self, shard: int) -> bool:
        """Whether an earlier run copied and checked it."""
        return self._path(shard).exists() and self._path(shard).stat().st_size == self.sizes[shard]

    def _require_room(self) -> None:
        free = shutil.disk_usage(receipts_of(self.target)).free
        if self._left > free:
            raise UserError(
                f"the copy of {str(self.cache.path)!r} needs {readable_bytes(self._left)} more, but "
                f"{str(self.target.parent)!r} has {readable_bytes(free)} free: choose another --stage, or leave it out."
            )

    def _damaged(self, shard: int, reason: str) -> UserError:
        return UserError(f"shard {shard} of {str(self.cache.path)!r} is damaged ({reason}): {REPAIR}.")


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)
