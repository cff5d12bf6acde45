"""Where a cache lies: a folder, or a place on a server."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from losa_cache.cache.blob import Blob, FileBlob, RemoteBlob
from losa_cache.cache.remote import RemotePath, is_url
from losa_cache.cache.shard import DamagedShardError
from losa_cache.errors import UserError
from losa_cache.folders import settled_path
from losa_cache.outside import UnreadableError, require_regular

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
    """Open a shard's bytes.

    Raises:
        FileNotFoundError: if there is none.
        DamagedShardError: if it is no regular file, or cannot be opened.
    """
    if isinstance(file, RemotePath):
        return RemoteBlob(file)
    require_shard(file)
    try:
        return FileBlob(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedShardError(f"it cannot be opened: {error.strerror}") from error


def require_shard(file: Path) -> None:
    """Refuse a pipe, a device or a folder in place of a shard, before anybody waits for it.

    Raises:
        DamagedShardError: for such.
    """
    try:
        require_regular(file)
    except UnreadableError as error:
        raise DamagedShardError(str(error)) from error


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
