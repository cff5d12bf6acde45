"""Where a cache lies: a folder, or a place on a server."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from losa_cache.cache.blob import Blob, FileBlob, RemoteBlob
from losa_cache.cache.remote import RemotePath, is_url
from losa_cache.errors import UserError
from losa_cache.folders import settled_path

Location = Path | RemotePath
REQUESTS = 16  # at the same time, for sizes of files


def locate(place: str | Location) -> Location:
    """Take a path or a URL: a path with ``~``, ``.`` and every link followed, so that a cache has one name alone.

    Its lock and its receipts lie beside that name: by another name a second process would pass them by.

    Raises:
        UserError: for a URL or a path that cannot be one of a cache, a link that leads nowhere, or without obstore.
    """
    if isinstance(place, str) and is_url(place):
        return RemotePath.parse(place)
    if isinstance(place, RemotePath):
        return place
    path = settled_path(place)
    if not path.name:
        raise UserError(f"{str(place)!r} cannot be a cache: name a folder below it.")
    return path


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


def sizes(files: Sequence[Location]) -> list[int]:
    """Bytes of each file, 0 where there is none; many are asked for at once."""

    def size(file: Location) -> int:
        try:
            return file_size(file)
        except OSError:  # not there, or behind a folder that cannot be read
            return 0

    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(size, files))
