"""Writing of one shard: first its bytes in the store, then the list of its checksums beside it, and last its receipt.

The receipt says that everything is there.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.cache.claims import Claims
from losa_cache.cache.layout import Layout
from losa_cache.cache.receipt import Receipt, ReceiptContent
from losa_cache.cache.shard import DamagedShardError, ShardReader, ShardWriter
from losa_cache.cache.storage import StorePath


@dataclass(frozen=True)
class ShardCommit(ABC):
    """The files of one shard.

    Attributes:
        path: file of the shard.
        receipt: its receipt and its list of checksums.
        claims: of this process, where several write the cache; ``None``: every shard is its own.
    """

    path: StorePath
    receipt: Receipt
    claims: Claims | None

    @property
    def shard(self) -> int:
        """Its number."""
        return self.receipt.shard

    @property
    @abstractmethod
    def file(self) -> Path:
        """The file to which the bytes are written first."""

    @abstractmethod
    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """Publish the bytes, then the list, then the receipt. A store may still be at work after this returns."""

    def done(self) -> ReceiptContent | None:
        """Return the receipt if the shard is there with the size, number and identity of the receipt."""
        try:
            content = self.receipt.read()
            return content if self.path.size() == content["bytes"] else None
        except (DamagedShardError, OSError):
            return None

    def begin(self, layout: Layout) -> ShardWriter:
        """Remove what an earlier run left of the shard, unless another process may have finished it, and start it."""
        if self.claims is None:
            self.forget()
        return ShardWriter(self.file, layout)

    def forget(self) -> None:
        """Have it written again."""
        self.receipt.forget()

    def settle(self, layout: Layout) -> None:
        """Forget a shard whose bytes differ from its receipt; write the list if an older version left it out.

        This is for a process that has the cache alone: what it forgets was not finished by another one meanwhile. It
        reads the checksums behind all chunks; large chunks themselves are not read: at ViT-B in bfloat16 (chunks of 300
        kB) about 170 s a terabyte from a cold SSD, 11 s from the page cache (one core of an AMD EPYC). On a server only
        the first and the last sample of a shard that has a list are compared; without a list the shard is read whole.
        """
        content = self.done()
        if content is None:
            if self.receipt.file.is_file():
                self._forget_in_turn()
            return
        try:
            reader = ShardReader(self.path.open_bytes(), layout)
            listed = self.receipt.listed()
            known = listed is not None and reader.hashes_to(content["digest"], listed)
            if listed is not None and known and self.path.remote:
                if not _holds_both_ends(reader, listed):
                    self._forget_in_turn()
                return
            found = reader.checksums()
        except DamagedShardError:
            self._forget_in_turn()
            return
        if not reader.hashes_to(content["digest"], found):
            self._forget_in_turn()
        elif not known:
            self.receipt.write_list(found)

    def _forget_in_turn(self) -> None:
        """Forget it, unless another process has taken over, which may have finished it meanwhile."""
        if self.claims is not None:
            self.claims.require_turn()
        self.forget()

    @property
    def mine(self) -> bool:
        """Whether this process may publish it."""
        return self.claims is None or self.claims.has(self.shard)

    def content(self, writer: ShardWriter, notes: dict[str, Any]) -> ReceiptContent:
        """Give the content of its receipt.

        Args:
            writer: of its bytes, all written.
            notes: ``skipped``, ``overflowed`` and ``non_finite``.
        """
        return ReceiptContent(
            identity=self.receipt.identity,
            shard=self.shard,
            bytes=writer.size,
            digest=writer.digest,
            skipped=notes["skipped"],
            overflowed=notes["overflowed"],
            non_finite=notes["non_finite"],
        )

    def seal(self, content: ReceiptContent, checksums: bytes | bytearray) -> None:
        """Write the list, then the receipt: its bytes are there."""
        self.receipt.write_list(checksums)
        self.receipt.write(content)


def _holds_both_ends(reader: ShardReader, listed: bytes) -> bool:
    ends = [reader.checksums(slice(place, place + 1)) for place in reader.present[:1] + reader.present[-1:]]
    return not ends or (listed.startswith(ends[0]) and listed.endswith(ends[1]))
