"""The store through which Zarr reads a cache's metadata files: each file is compared with the receipts before it is
used.
"""

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
    """Hash a small file. A crc32c would not do: it is the same for all contents that end in their own crc32c."""
    return hashlib.sha256(content).hexdigest()


def require_own(name: str, content: bytes | memoryview, digests: Mapping[str, str], place: StorePath) -> None:
    """Refuse a file whose content differs from what the receipts say.

    Args:
        name: of the file, below the store.
        content: its bytes.
        digests: sha256 of every file, by name.
        place: the store.

    Raises:
        UserError: naming the file.
    """
    if sha256(content) != digests.get(name):
        raise UserError(
            f"{str(place)!r} cannot be read as a cache: its file {name} differs from what its receipts say: {REPAIR}."
        )


class CheckedStore(WrapperStore[Store]):
    """The store that Zarr reads a cache's small arrays from. It refuses missing chunks and files that differ from the
    receipts.

    Args:
        place: the ``.zarr`` folder.
        digests: sha256 of every metadata file, by name. A file that is not listed counts as missing, and one that
            differs is an error. ``None``: there are no receipts, and nothing is compared.
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
