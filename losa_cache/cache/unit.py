"""One shard to be written: its bytes in the store, then its receipt beside it, which says that they are all there."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.cache.layout import Layout
from losa_cache.cache.location import Location, file_size
from losa_cache.cache.remote import RemotePath
from losa_cache.cache.shard import ShardWriter
from losa_cache.files import read_sealed, sealed, write_sealed


@dataclass(frozen=True)
class ShardUnit:
    """The two files of one shard.

    Attributes:
        shard: its number.
        path: of its bytes.
        receipt: of it.
        identity: of the cache.
    """

    shard: int
    path: Path
    receipt: Path
    identity: str

    def done(self) -> dict[str, Any] | None:
        """Return the receipt if the shard is there, whole and of this identity."""
        return _whole(self.receipt, self.path, self.identity)

    def begin(self, layout: Layout) -> ShardWriter:
        """Forget what an earlier run left of the shard and start it."""
        self.forget()
        return ShardWriter(self.path, layout)

    def forget(self) -> None:
        """Have it written again."""
        self.receipt.unlink(missing_ok=True)

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """Publish the bytes, then the receipt."""
        writer.commit()
        write_sealed(self.receipt, _content(self, writer) | notes)


class Uploads:
    """Uploads on a thread of their own, one while the next shard is written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "upload")
        self._last: Future[None] | None = None
        self.done: dict[int, dict[str, Any]] = {}

    def start(self, upload: Callable[[], None]) -> None:
        """Begin one, once the one before has ended.

        Raises:
            UserError: if that failed.
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
        """Let the one that is under way end."""
        self._thread.shutdown()


@dataclass(frozen=True)
class RemoteUnit:
    """The two objects of one shard on a server, which is written in a scratch folder and uploaded whole.

    Attributes:
        shard, path, receipt, identity: as of :class:`ShardUnit`.
        scratch: the folder.
        uploads: of the writer; ``done`` there holds receipts that were found or written: no other process changes them.
    """

    shard: int
    path: RemotePath
    receipt: RemotePath
    identity: str
    scratch: Path
    uploads: Uploads

    def done(self) -> dict[str, Any] | None:
        """As :class:`ShardUnit` says."""
        if self.shard not in self.uploads.done and (found := _whole(self.receipt, self.path, self.identity)):
            self.uploads.done[self.shard] = found
        return self.uploads.done.get(self.shard)

    def begin(self, layout: Layout) -> ShardWriter:
        """As :class:`ShardUnit` says."""
        self.forget()
        return ShardWriter(self.scratch / self.path.name, layout)

    def forget(self) -> None:
        """As :class:`ShardUnit` says."""
        self.uploads.done.pop(self.shard, None)
        self.receipt.unlink(missing_ok=True)

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """As :class:`ShardUnit` says, but the upload goes on behind."""
        writer.commit()
        receipt = _content(self, writer) | notes

        def upload() -> None:
            self.path.upload(writer.path)
            self.receipt.write_bytes(sealed(receipt))
            writer.path.unlink()
            self.uploads.done[self.shard] = receipt

        self.uploads.start(upload)


def _content(unit: ShardUnit | RemoteUnit, writer: ShardWriter) -> dict[str, Any]:
    return {"identity": unit.identity, "shard": unit.shard, "bytes": writer.size, "digest": writer.digest}


def _whole(receipt: Location, path: Location, identity: str) -> dict[str, Any] | None:
    try:
        content = read_sealed(receipt)
        whole = content["identity"] == identity and file_size(path) == content["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return content if whole else None
