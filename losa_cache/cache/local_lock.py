"""Writing a cache on a file system: a lock that ends with its process, temporary names, renames."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.cache.claims import Claims
from losa_cache.cache.half_done import require_whole
from losa_cache.cache.members import FOLDER
from losa_cache.cache.metadata_files import LocalMetadata
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.shard import ShardWriter
from losa_cache.cache.shard_commit import ShardCommit
from losa_cache.cache.storage import StorePath, WriterLock, receipts_of
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import BusyError, UserError
from losa_cache.files import clear, link_if_none, publish, sync_folder
from losa_cache.lock import lock, unlock
from losa_cache.machine.sizes import readable_bytes


class LocalLock(WriterLock):
    """A cache on a file system, locked by ``flock``.

    Args:
        path: the ``.zarr`` folder.
        shared: lock it with others, who each write what they claim.

    Raises:
        UserError: if another process has the lock, or a move or a removal of the cache was interrupted.
        OSError: if the cache cannot be written.
    """

    metadata: LocalMetadata
    disk: LocalPath

    def __init__(self, path: LocalPath, *, shared: bool = False) -> None:
        self.path = path
        self.metadata = LocalMetadata(path, receipts_of(path), self.require_turn)
        self.disk = receipts_of(path)
        self.disk.mkdir(parents=True, exist_ok=True)
        self._lock = lock_or_refuse(self.disk / "lock", path, shared=shared)
        try:
            require_whole(path)
            self.claims = Claims(self.disk) if shared else None
        except BaseException:
            unlock(self._lock)
            raise

    def begun(self) -> bool:
        """Whether there is anything of that name."""
        return self.metadata.store.exists()

    def sweep(self) -> None:
        """Remove files and folders that still have temporary names, and claims, unless the lock is shared."""
        if self.claims is None:
            clear(self.disk / FOLDER)
        for folder in (self.metadata.store, self.metadata.receipts):
            for leftover in list(folder.rglob("*.partial")):
                if leftover.parent.name != FOLDER:
                    clear(leftover)

    def require_space(self, shards: Sequence[int], ratio: float) -> None:
        """Refuse a disk that cannot hold everything that is still missing."""
        needed = sum(shards) * ratio
        free = shutil.disk_usage(self.disk).free
        if needed > free:
            raise UserError(
                f"the cache needs {readable_bytes(needed)} more, but its disk has {readable_bytes(free)} free: choose "
                f"fewer --layers, a smaller --limit or another --out than {str(self.path)!r}."
            )

    def commit(self, path: StorePath, receipt: Receipt) -> "LocalShard":
        """Give the files of one shard. The shard is written in its final folder."""
        return LocalShard(path, receipt, self.claims)

    def close(self) -> None:
        """Let others write the cache."""
        if self.claims is not None:
            self.claims.leave()
            with suppress(OSError):  # others are left
                (self.disk / FOLDER).rmdir()
        unlock(self._lock)


@dataclass(frozen=True)
class LocalShard(ShardCommit):
    """A shard that is written beside its final name and renamed."""

    @property
    def file(self) -> Path:
        """Its own."""
        assert self.path.on_disk is not None
        return self.path.on_disk

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """Rename the bytes, then write the list and the receipt."""
        if self.claims is None:
            writer.commit()
        else:
            writer.end()
            if not self._publish(writer):
                self.claims.lost(self.shard)
                return
        self.seal(self.content(writer, notes), writer.checksums)

    def _publish(self, writer: ShardWriter) -> bool:
        """Give the bytes their name if the shard still is this process's, and no other has finished it."""
        try:
            published = self.mine and link_if_none(writer.partial, writer.path)
            if not published and self.mine and self.done() is None and self.mine:  # reading a receipt takes time
                publish(writer.partial, writer.path)  # its owner had gone before it wrote the receipt
                return self.mine
            writer.partial.unlink()
            sync_folder(writer.path.parent)
        except FileNotFoundError:  # removed by the process that finished the cache
            return False
        return published and self.mine


def lock_or_refuse(file: Path, store: StorePath, *, shared: bool = False) -> int:
    """Lock a file.

    Raises:
        UserError: if another process has it, that is: another process writes ``store``.
    """
    handle = lock(file, shared=shared)
    if handle is None:
        others = "without --part " if shared else ""
        raise BusyError(
            f"another process {others}is writing the cache {str(store)!r}: wait for it, choose another --out, or start "
            "every process with --part auto."
        )
    return handle
