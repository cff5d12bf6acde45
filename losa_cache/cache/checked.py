"""The files of a cache's core as Zarr reads them: each is compared with what the receipts say, before it is used."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from losa_cache.cache.location import Location
from losa_cache.cache.remote import RemotePath
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, read_file

REPAIR = "losa-cache verify --repair mends it"


def read_small(place: Location) -> bytes:
    """Read a file of the core or of the receipts whole: from a file system only if it is a regular file.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableError: if it cannot be read.
        UserError: if its server fails.
    """
    if isinstance(place, RemotePath):
        return place.read_bytes()
    try:
        return read_file(place, at_most=place.stat().st_size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error


def sha256(content: bytes | memoryview) -> str:
    """Hash a small file. A crc32c would not do: of what ends in its own crc32c it is constant."""
    return hashlib.sha256(content).hexdigest()


def require_own(name: str, content: bytes | memoryview, digests: Mapping[str, str], place: Location) -> None:
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


def zarr_store(place: Location, digests: Mapping[str, str] | None) -> tuple[Store, str]:
    """Give Zarr's store to read a core from, and the path of the group therein.

    Args:
        place: the ``.zarr`` folder, here or on a server.
        digests: sha256 of every file of the core, by name: what is not listed is not there, and what differs is an
            error. ``None``: nothing says.
    """
    if isinstance(place, RemotePath):
        return _Core(ObjectStore(place.store, read_only=True), place, place.key, digests), place.key
    return _Core(LocalStore(place, read_only=True), place, "", digests), ""


class _Core(WrapperStore[Store]):
    """A store whose arrays have all their chunks, and whose files are those that the receipts say."""

    def __init__(self, store: Store, place: Location, prefix: str, digests: Mapping[str, str] | None) -> None:
        super().__init__(store)
        self._place, self._prefix, self._digests = place, prefix, digests

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        name = key[len(self._prefix) :].lstrip("/")
        listed = self._digests is not None and name in self._digests
        found = await self._read(key, prototype, byte_range) if listed or self._digests is None else None
        if found is None and (listed or "c" in name.split("/")):  # "c": as all keys of chunks, and no other
            raise KeyError(f"{name} is missing")
        if found is not None and self._digests is not None:
            require_own(name, memoryview(found.to_bytes()), self._digests, self._place)
        return found

    async def _read(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        if byte_range is not None or not isinstance(self._place, Path):
            return await super().get(key, prototype, byte_range)
        try:
            return prototype.buffer.from_bytes(await asyncio.to_thread(read_small, self._place / key))
        except FileNotFoundError:
            return None
        except UnreadableError as error:
            raise ValueError(f"{key} cannot be read: {error}") from error
