"""Files from HTTP servers, fetched once and kept."""

import hashlib
import logging
import os
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from losa_cache.errors import UserError
from losa_cache.files import replacing

log = logging.getLogger(__name__)

_FOLDER = "downloads"
_TIMEOUT = 60  # seconds without a byte


def fetched(url: str, home: Path | None) -> Path:
    """Give the local copy of a file; fetch it whole first if there is none.

    A copy is kept below ``home`` by the hash of its URL, under its own name. It is not compared with the server's file
    again.

    Args:
        url: ``http://`` or ``https://``.
        home: where copies are kept.

    Raises:
        UserError: for another kind of URL, no place to keep files, or a file that cannot be fetched.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{url!r} is no URL of HTTP: copy the file here, and name its path.")
    if home is None:
        raise UserError("this user has no home folder to keep downloads in: set LOSA_CACHE_HOME to one.")
    name = os.path.basename(parts.path)
    if name in ("", ".", ".."):
        raise UserError(f"{url!r} names no file: write the URL of one.")
    path = home / _FOLDER / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.is_file():
        return path
    log.info("fetching %s", url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(url, timeout=_TIMEOUT) as response, replacing(path) as file:  # noqa: S310
            shutil.copyfileobj(response, file, 1024 * 1024)
            length = response.headers.get("Content-Length")
            if length is not None and file.tell() != int(length):
                raise ValueError(f"{file.tell()} of {length} bytes came")
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url!r} cannot be fetched ({reason}): run the same command again, or copy the file here."
        ) from error
    return path
