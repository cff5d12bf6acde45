"""Writing a cache to an object store: each shard is written to a local folder and uploaded whole, then its receipt."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from losa_cache.cache.claims import Claims
from losa_cache.cache.local_lock import lock_or_refuse
from losa_cache.cache.members import FOLDER, Members
from losa_cache.cache.metadata_files import LIST, ROOT, LocalMetadata
from losa_cache.cache.object_metadata import ObjectMetadata
from losa_cache.cache.object_sign import Sign
from losa_cache.cache.object_store import ObjectPath
from losa_cache.cache.receipt import Receipt, ReceiptContent
from losa_cache.cache.shard import ShardWriter
from losa_cache.cache.shard_commit import ShardCommit
from losa_cache.cache.storage import StorePath, WriterLock, receipts_of
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.files import clear, own_partial, write_whole
from losa_cache.folders import home
from losa_cache.lock import lock, locked, unlock
from losa_cache.machine.sizes import readable_bytes
from losa_cache.outside import UnreadableError, read_file

SCRATCH_SHARDS = 2  # one that is written, one that is uploaded
TOKEN_BYTES = 32
SCRATCHES = "shared"


class ObjectLock(WriterLock):
    """A cache in an object store, locked by an object there that says who writes it (:class:`Sign`), and by ``flock``
    on a local folder, which keeps processes of this ``$LOSA_CACHE_HOME`` apart.

    Everything that counts lies in the store, so any machine can go on.

    Args:
        path: of the cache.
        shared: lock it with others, who each write what they claim.

    Attributes:
        disk: the scratch folder, below ``$LOSA_CACHE_HOME``; each process that shares the lock has its own.

    Raises:
        UserError: if another process has the lock, or the store fails.
    """

    path: ObjectPath

    def __init__(self, path: ObjectPath, *, shared: bool = False) -> None:
        self.path = path
        if shared and not path.lists:
            raise UserError(
                f"an HTTP server cannot say which of several processes was first: extract {str(path)!r} without --part."
            )
        self.disk = home() / "uploads" / hashlib.sha256(str(path).encode()).hexdigest()[:16]
        try:
            self.disk.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{str(self.disk)!r}, the folder for shards before their upload to {str(path)!r}, cannot be made "
                f"({error.strerror}): set LOSA_CACHE_HOME to a folder that can be written."
            ) from error
        self._lock, self._own = lock_or_refuse(self.disk / "lock", path, shared=shared), None
        self._sign = Sign(path, self._token())
        try:
            if shared:
                self.claims = Claims(receipts_of(path))
                self._sign.share()
                self.disk, self._own = _own_scratch(self.disk, self.claims.token)
            else:
                self._sign.alone()
                self._clear()
        except BaseException:
            self._let_go()
            raise
        scratch = LocalPath(self.disk / "core.zarr")
        local = LocalMetadata(scratch, receipts_of(scratch))
        self.metadata = ObjectMetadata(path, receipts_of(path), local, self.require_turn)
        self._uploads = Uploads()

    def begun(self) -> bool:
        """Whether there is any object below that name; if the store cannot list, whether one of the first objects is
        there.
        """
        if any(place.is_file() for place in (self.path / ROOT, receipts_of(self.path) / "core" / LIST)):
            return True
        return self.path.lists and any(self.path.scan())

    def sweep(self) -> None:
        """Remove claims, unless the lock is shared. An object that was not uploaded whole is not there."""
        if self.claims is None and self.path.lists:
            for name in Members(receipts_of(self.path)).names:
                (receipts_of(self.path) / FOLDER / name).unlink(missing_ok=True)

    def require_space(self, shards: Sequence[int], ratio: float) -> None:
        """Refuse a scratch folder that cannot hold the shards that are being written and uploaded."""
        needed = sum(sorted(shards)[-SCRATCH_SHARDS:])
        free = shutil.disk_usage(self.disk).free
        if needed > free:
            raise UserError(
                f"an upload needs {readable_bytes(needed)} here for the shards under way, but {str(self.disk)!r} "
                f"has {readable_bytes(free)} free: set LOSA_CACHE_HOME to another disk."
            )

    def commit(self, path: StorePath, receipt: Receipt) -> "UploadedShard":
        """Give the objects of one shard, which is written in the scratch folder."""
        assert isinstance(path, ObjectPath), "a shard of this cache"
        return UploadedShard(path, receipt, self.claims, self.disk, self._uploads)

    def wait(self) -> None:
        """Wait for the current upload."""
        self._uploads.wait()

    def close(self) -> None:
        """Wait for the current upload, clear the scratch folder and let others write the cache."""
        try:
            self._uploads.close()
            self._clear()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self.claims is not None:
            self.claims.leave()
        try:
            with suppress(UserError, FileNotFoundError):  # the next to come takes it over
                self._sign.remove()
        finally:
            if self._own is not None:
                shutil.rmtree(self.disk, ignore_errors=True)
                unlock(self._own)
            unlock(self._lock)

    def _clear(self) -> None:
        for name in ("core.zarr", "core.zarr.receipts", SCRATCHES):
            shutil.rmtree(self.disk / name, ignore_errors=True)
        for shard in self.disk.glob("c.*"):
            shard.unlink()

    def _token(self) -> str:
        file = self.disk / "token"
        try:
            return read_file(file, at_most=TOKEN_BYTES).decode("ascii")
        except (UnreadableError, ValueError):  # none yet, or none that this process wrote
            token = uuid4().hex
            clear(file)
            write_whole(file, token.encode(), own_partial(file))
            return token


def _own_scratch(folder: Path, name: str) -> tuple[Path, int | None]:
    """Make a scratch folder for one of several processes, lock it, and remove those of processes that have ended."""
    scratches = folder / SCRATCHES
    scratches.mkdir(exist_ok=True)
    with locked(scratches / "lock"):
        for left in filter(Path.is_dir, list(scratches.iterdir())):
            if (handle := lock(left / "lock")) is not None:
                shutil.rmtree(left, ignore_errors=True)
                unlock(handle)
        own = scratches / name
        own.mkdir()
        return own, lock(own / "lock")


class Uploads:
    """Uploads on a thread of their own: one upload runs while the next shard is written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "upload")
        self._last: Future[None] | None = None
        self.done: dict[int, ReceiptContent] = {}

    def start(self, upload: Callable[[], None]) -> None:
        """Begin an upload after the one before has ended.

        Raises:
            UserError: if the one before failed.
        """
        self.wait()
        self._last = self._thread.submit(upload)

    def wait(self) -> None:
        """Wait for the one that is under way.

        Raises:
            UserError: if it failed.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Let the current upload end."""
        self._thread.shutdown()


@dataclass(frozen=True)
class UploadedShard(ShardCommit):
    """A shard that is written in a scratch folder and uploaded whole.

    Attributes:
        scratch: the folder.
        uploads: those of the lock; its ``done`` holds the receipts that were read or written, which no other process
            changes.
    """

    path: ObjectPath
    scratch: Path
    uploads: Uploads

    @property
    def file(self) -> Path:
        """One in the scratch folder."""
        return self.scratch / self.path.name

    def done(self) -> ReceiptContent | None:
        """Return the receipt, read once."""
        if self.shard not in self.uploads.done and (found := super().done()) is not None:
            self.uploads.done[self.shard] = found
        return self.uploads.done.get(self.shard)

    def forget(self) -> None:
        """Have it written again."""
        self.uploads.done.pop(self.shard, None)
        super().forget()

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """Upload the bytes, then write the list and the receipt, while the next shard is written.

        Of two processes that have computed a shard, after one of them stood still, the one that lost the claim does not
        upload it. If it lost it during the upload, it has replaced bytes by the same bytes, and leaves the receipt.
        """
        writer.commit()
        content = self.content(writer, notes)

        def upload() -> None:
            if self.mine:
                self.path.upload(writer.path)
            if self.mine:
                self.seal(content, writer.checksums)
                self.uploads.done[self.shard] = content
            elif self.claims is not None:
                self.claims.lost(self.shard)
            writer.path.unlink()

        self.uploads.start(upload)
