"""A cache's metadata files as Zarr reads them: each is compared with what the receipts say, before it is used."""

import asyncio
import hashlib
from collections.abc import Mapping

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore, WrapperStore

from losa_cache.cache.storage import StorePath
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError

REPAIR = "losa-cache verify --repair mends it"


def sha256(content: bytes | memoryview) -> str:
    """Hash a small file. A crc32c would not do: of what ends in its own crc32c it is constant."""
    return hashlib.sha256(content).hexdigest()


def require_own(name: str, content: bytes | memoryview, digests: Mapping[str, str], place: StorePath) -> None:
    """Refuse a file that is not the one that the receipts say.

    Args:
        name: of the file, below the store.
        content: of it.
        digests: sha256 of every file, by name.
        place: the store.

    Raises:
        UserError: naming the file.
    """
    if sha256(content) != digests.get(name):
        raise UserError(
            f"{str(place)!r} cannot be read as a cache: its file {name} is not the one that its receipts say: {REPAIR}."
        )


class CheckedStore(WrapperStore[Store]):
    """What Zarr reads a cache's small arrays from: they have all their chunks, and their files are as the receipts say.

    Args:
        place: the ``.zarr`` folder.
        digests: sha256 of every metadata file, by name: what is not listed is not there, and what differs is an
            error. ``None``: nothing says.
    """

    def __init__(self, place: StorePath, digests: Mapping[str, str] | None) -> None:
        super().__init__(MemoryStore(read_only=True))  # an empty one: all reading is done here
        self._place, self._digests = place, digests

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a file and hold it to its digest.

        Raises:
            KeyError: for a chunk, or a file of the list, that is missing.
            ValueError: for what is no regular file.
            UserError: for a file that is another than its digest says, or if the server fails.
        """
        assert byte_range is None, "small arrays have no shards"
        listed = self._digests is not None and key in self._digests
        found = await asyncio.to_thread(self._read, key) if listed or self._digests is None else None
        if found is None and (listed or "c" in key.split("/")):  # "c": as all keys of chunks, and no other
            raise KeyError(f"{key} is missing")
        if found is not None and self._digests is not None:
            require_own(key, found, self._digests, self._place)
        return None if found is None else prototype.buffer.from_bytes(found)

    async def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return await asyncio.to_thread((self._place / key).is_file)

    def _read(self, key: str) -> bytes | None:
        try:
            return (self._place / key).read()
        except FileNotFoundError:
            return None
        except UnreadableError as error:
            raise ValueError(f"{key} cannot be read: {error}") from error
