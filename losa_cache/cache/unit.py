"""One shard to be written: its bytes in the store, then beside it the list of its checksums, and last its receipt.

The receipt says that all is there.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.cache.layout import Layout
from losa_cache.cache.location import Location, file_size, open_blob
from losa_cache.cache.receipt import Receipt, ReceiptContent
from losa_cache.cache.remote import RemotePath
from losa_cache.cache.shard import DamagedShardError, ShardReader, ShardWriter


@dataclass(frozen=True)
class ShardUnit:
    """The files of one shard.

    Attributes:
        path: of its bytes.
        receipt: of it, and its list of checksums.
    """

    path: Path
    receipt: Receipt

    @property
    def shard(self) -> int:
        """Its number."""
        return self.receipt.shard

    def done(self) -> ReceiptContent | None:
        """Return the receipt if the shard is there, of its size, number and identity."""
        return _whole(self.receipt, self.path)

    def settle(self, layout: Layout) -> None:
        """Forget a shard whose bytes are not those of its receipt; write the list that older versions left out.

        Reads the checksums behind all chunks, not the chunks where these are large: at ViT-B in bfloat16 (chunks of 300
        kB) about 170 s a terabyte from a cold SSD, 11 s from the page cache (one core of an AMD EPYC).
        """
        _settle(self, layout)

    def begin(self, layout: Layout) -> ShardWriter:
        """Forget what an earlier run left of the shard and start it."""
        self.forget()
        return ShardWriter(self.path, layout)

    def forget(self) -> None:
        """Have it written again."""
        self.receipt.forget()

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """Publish the bytes, the list, then the receipt."""
        writer.commit()
        self.receipt.write_list(writer.checksums)
        self.receipt.write(_content(self.receipt, writer, notes))


class Uploads:
    """Uploads on a thread of their own, one while the next shard is written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "upload")
        self._last: Future[None] | None = None
        self.done: dict[int, ReceiptContent] = {}

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
    """The objects of one shard on a server, which is written in a scratch folder and uploaded whole.

    Attributes:
        path, receipt: as of :class:`ShardUnit`.
        scratch: the folder.
        uploads: of the writer; ``done`` there holds receipts that were found or written: no other process changes them.
    """

    path: RemotePath
    receipt: Receipt
    scratch: Path
    uploads: Uploads

    @property
    def shard(self) -> int:
        """As :class:`ShardUnit` says."""
        return self.receipt.shard

    def done(self) -> ReceiptContent | None:
        """As :class:`ShardUnit` says."""
        if self.shard not in self.uploads.done and (found := _whole(self.receipt, self.path)) is not None:
            self.uploads.done[self.shard] = found
        return self.uploads.done.get(self.shard)

    def settle(self, layout: Layout) -> None:
        """As :class:`ShardUnit` says, but of a shard that has a list only the first and the last sample are compared.

        Without a list the shard is read whole.
        """
        _settle(self, layout)

    def begin(self, layout: Layout) -> ShardWriter:
        """As :class:`ShardUnit` says."""
        self.forget()
        return ShardWriter(self.scratch / self.path.name, layout)

    def forget(self) -> None:
        """As :class:`ShardUnit` says."""
        self.uploads.done.pop(self.shard, None)
        self.receipt.forget()

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """As :class:`ShardUnit` says, but the upload goes on behind."""
        writer.commit()
        content = _content(self.receipt, writer, notes)

        def upload() -> None:
            self.path.upload(writer.path)
            self.receipt.write_list(writer.checksums)
            self.receipt.write(content)
            writer.path.unlink()
            self.uploads.done[self.shard] = content

        self.uploads.start(upload)


def _content(receipt: Receipt, writer: ShardWriter, notes: dict[str, Any]) -> ReceiptContent:
    return ReceiptContent(
        identity=receipt.identity,
        shard=receipt.shard,
        bytes=writer.size,
        digest=writer.digest,
        skipped=notes["skipped"],
        overflowed=notes["overflowed"],
        non_finite=notes["non_finite"],
    )


def _whole(receipt: Receipt, path: Location) -> ReceiptContent | None:
    try:
        content = receipt.read()
        return content if file_size(path) == content["bytes"] else None
    except (DamagedShardError, OSError):
        return None


def _settle(unit: ShardUnit | RemoteUnit, layout: Layout) -> None:
    content = unit.done()
    if content is None:
        return
    try:
        reader = ShardReader(open_blob(unit.path), layout)
        listed = unit.receipt.listed()
        known = listed is not None and reader.hashes_to(content["digest"], listed)
        if listed is not None and known and isinstance(unit, RemoteUnit):
            if not _holds_both_ends(reader, listed):
                unit.forget()
            return
        found = reader.checksums()
    except DamagedShardError:
        unit.forget()
        return
    if not reader.hashes_to(content["digest"], found):
        unit.forget()
    elif not known:
        unit.receipt.write_list(found)


def _holds_both_ends(reader: ShardReader, listed: bytes) -> bool:
    ends = [reader.checksums(slice(place, place + 1)) for place in reader.present[:1] + reader.present[-1:]]
    return not ends or (listed.startswith(ends[0]) and listed.endswith(ends[1]))
