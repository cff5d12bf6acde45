"""Files of tensors and numbers that notice every change: torch's own format, with a digest of the whole behind it.

``torch.load(path, weights_only=True)`` reads them, too: a zip archive may have a few bytes behind its end.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from losa_cache.files import replacing
from losa_cache.outside import UnreadableError, open_file

MOST_BYTES = 64 * 2**30
_MARK = b"\nlosa-cache sha256 "  # then the digest in hexadecimal digits, which no part of an archive's end is made of
_BEHIND = len(_MARK) + 64


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and numbers to a file, whole or not at all, durably.

    Raises:
        OSError: naming the file, of which nothing has changed then.
    """
    with replacing(path) as file:
        digesting = _Digesting(file)
        try:
            torch.save(state, cast(Any, digesting))
        except RuntimeError as error:  # torch's own words for whatever a write raised
            if digesting.raised is None:
                raise
            raise digesting.raised from error
        file.write(_MARK + digesting.digest.hexdigest().encode())


def load_state(path: Path, device: torch.device, *, sealed: bool = False, at_most: int = MOST_BYTES) -> dict[str, Any]:
    """Read what :func:`save_state` wrote. Nothing in the file is executed.

    Args:
        path: of the file.
        device: for the tensors.
        sealed: refuse a file without a digest, as earlier versions wrote them.
        at_most: bytes that such a file may have; no more memory than that is taken.

    Raises:
        UnreadableError: if it was altered since it was written, or cannot be such a file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise UnreadableError(f"it has {size} bytes, and can have {at_most} at most")
        _require_digest(file, size, sealed=sealed)
        _require_plain_archive(file, size)
        file.seek(0)
        try:
            state: Any = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch raises anything
            raise UnreadableError(f"torch does not load it: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise UnreadableError(f"it holds a {type(state).__name__}")
    return state


class _Digesting:
    """A file for torch to write to, that keeps the digest of what it was given and what a write raised."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.raised: BaseException | None = None

    def write(self, content: bytes) -> int:
        try:
            self.digest.update(content)
            return self._file.write(content)
        except BaseException as error:
            self.raised = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _require_digest(file: BinaryIO, size: int, *, sealed: bool) -> None:
    body = max(0, size - _BEHIND)
    try:
        file.seek(body)
        mark, digest = file.read(len(_MARK)), file.read()
        if mark != _MARK:
            if sealed:
                raise UnreadableError("its digest is missing: it was cut off or altered since it was written")
            return
        file.seek(0)
        computed = hashlib.sha256()
        while body and (content := file.read(min(body, 1 << 20))):
            computed.update(content)
            body -= len(content)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    if computed.hexdigest().encode() != digest:
        raise UnreadableError("its digest does not match: it was altered since it was written")


def _require_plain_archive(file: BinaryIO, size: int) -> None:
    """Refuse an archive that would take more memory than its own size."""
    try:
        records = zipfile.ZipFile(cast(Any, file)).infolist()
    except Exception as error:  # zipfile raises anything for what is none
        raise UnreadableError("it is no archive as torch writes them") from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise UnreadableError("it is compressed, which torch never does")
    if sum(record.file_size for record in records) > size:
        raise UnreadableError("it says to hold more than it has bytes")
