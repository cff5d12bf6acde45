"""Where a cache lies: a folder, or a place on a server."""

from pathlib import Path

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
