"""Where a cache lies: a folder, or a place on a server."""

from pathlib import Path

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from losa_cache.cache.blob import Blob, FileBlob, RemoteBlob
from losa_cache.cache.remote import RemotePath, is_url

Location = Path | RemotePath


def locate(place: str | Location) -> Location:
    """Take a path or a URL.

    Raises:
        UserError: for a URL that cannot be one of a cache, or without obstore.
    """
    if isinstance(place, str):
        return RemotePath.parse(place) if is_url(place) else Path(place)
    return place


def open_blob(file: Location) -> Blob:
    """Open a file's bytes.

    Raises:
        FileNotFoundError: if there is none.
    """
    return RemoteBlob(file) if isinstance(file, RemotePath) else FileBlob(file)


def file_size(file: Location) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: if there is none.
    """
    return file.size() if isinstance(file, RemotePath) else file.stat().st_size


def zarr_store(place: Location) -> tuple[Store, str]:
    """Give Zarr's store to read from, and the path of the group therein."""
    if isinstance(place, RemotePath):
        return _Whole(ObjectStore(place.store, read_only=True)), place.key
    return _Whole(LocalStore(place, read_only=True)), ""


class _Whole(WrapperStore[Store]):
    """A store whose arrays have all their chunks: one that is missing is an error, not the fill value."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and "c" in key.split("/"):  # as all keys of chunks, and no other
            raise KeyError(f"{key} is missing")
        return found
