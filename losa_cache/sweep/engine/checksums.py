"""Checksums of the files on which a sweep's results depend. The progress stores them, to detect later changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from losa_cache.outside import UnreadableError, open_file

PIECE = 1 << 20  # bytes read at once


def checksums(folder: Path, *names: str) -> dict[str, int]:
    """Give the CRC-32C of each of these files that is there.

    Raises:
        OSError: for one that cannot be read.
    """
    found = {}
    for name in names:
        if (folder / name).exists():
            with open(folder / name, "rb") as file:
                found[name] = _checksum(file)
    return found


def require_unchanged(folder: Path, known: Mapping[str, int]) -> None:
    """Compare files with their checksums.

    Raises:
        UnreadableError: naming a file that is missing or was altered.
    """
    for name, checksum in known.items():
        try:
            with open_file(folder / name) as file:
                found = _checksum(file)
        except (UnreadableError, OSError) as error:
            raise UnreadableError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
        if found != checksum:
            raise UnreadableError(f"{name} was altered")


def _checksum(file: BinaryIO) -> int:
    found = 0
    while piece := file.read(PIECE):
        found = google_crc32c.extend(found, piece)
    return found
