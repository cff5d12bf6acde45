"""The files that say what the bytes of a shard must be: its receipt, and the list of the checksums of all its chunks.

A chunk's checksum says that the chunk is intact. Only the receipt says whether the chunk is in the right place: it
names the cache and the shard, and its digest covers the checksums of all chunks and of the index. The list holds these
checksums, so that a reader can check a chunk without reading the rest of the shard.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from losa_cache.cache.shard import DamagedShardError, ShardReader
from losa_cache.cache.storage import StorePath
from losa_cache.files import sealed, unsealed
from losa_cache.outside import UnreadableError, fit

log = logging.getLogger(__name__)

CHECKSUMS = "checksums"
FOREIGN = "it is not the shard that its receipt is of"
_told: set[StorePath] = set()  # servers that were said to lack lists


class ReceiptContent(TypedDict):
    """What a receipt holds (``docs/protocol.md``, section "Writing")."""

    identity: str
    shard: int
    bytes: int
    digest: str
    skipped: list[dict[str, Any]]
    overflowed: int
    non_finite: int


@dataclass(frozen=True)
class Receipt:
    """The receipt of one shard and its list of checksums, on disk or on a server.

    Attributes:
        receipts: the folder beside the store.
        shard: its number.
        identity: identity of the cache.
    """

    receipts: StorePath
    shard: int
    identity: str

    @property
    def file(self) -> StorePath:
        """The receipt."""
        return self.receipts / f"{self.shard:06d}.json"

    @property
    def list(self) -> StorePath:
        """The list of checksums."""
        return self.receipts / CHECKSUMS / list_name(self.shard)

    def read(self) -> ReceiptContent:
        """Read the receipt.

        Raises:
            DamagedShardError: if it is missing, damaged, or of another shard or cache.
        """
        try:
            content = fit(unsealed(self.file.read(), self.file.name), ReceiptContent)
        except (OSError, ValueError, UnreadableError) as error:
            raise DamagedShardError("its receipt is missing or damaged") from error
        if content["identity"] != self.identity or content["shard"] != self.shard:
            raise DamagedShardError("its receipt is of another shard or cache")
        return content

    def listed(self) -> bytes | None:
        """Read the list without checking it; ``None`` if there is none, as in caches of older versions."""
        try:
            return self.list.read()
        except (OSError, UnreadableError):
            return None

    def write(self, content: ReceiptContent) -> None:
        """Write the receipt, whole: from then on the shard counts as finished."""
        self.file.write(sealed(dict(content)))

    def forget(self) -> None:
        """Remove the receipt, so that the shard is written again."""
        self.file.unlink(missing_ok=True)

    def write_list(self, checksums: bytes | bytearray) -> None:
        """Write the list, whole."""
        self.list.write(bytes(checksums))

    def bind(self, file: StorePath, open_shard: Callable[[], ShardReader]) -> ShardReader:
        """Open the shard so that every chunk is checked against its place.

        The checksums come from the list or, if there is none, from behind the chunks. The receipt's digest covers them
        in both cases. A shard on a server that has no list is read whole, once.

        Args:
            file: of the shard.
            open_shard: opens it.

        Raises:
            DamagedShardError: if receipt or shard are missing, damaged, or of another shard or cache.
            FileNotFoundError: if the shard is missing.
        """
        content = self.read()
        if file.size() != content["bytes"]:
            raise DamagedShardError(FOREIGN)
        reader, listed = open_shard(), self.listed()
        if listed is None or not reader.hashes_to(content["digest"], listed):
            if file.remote and self.receipts not in _told:
                _told.add(self.receipts)
                log.warning(
                    "%s lacks lists of checksums, as older caches do: every shard is read whole when it is first "
                    "opened, to check that it is in its place; run losa-cache verify --repair, or the same losa-cache "
                    "extract again, once to add them.",
                    str(self.receipts).removesuffix(".receipts"),
                )
            listed = reader.checksums()
            if not reader.hashes_to(content["digest"], listed):
                raise DamagedShardError(FOREIGN)
        reader.bind(listed)
        return reader


def list_name(shard: int) -> str:
    """Name the list of a shard's checksums."""
    return f"{shard:06d}.crc32c"
