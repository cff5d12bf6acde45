"""Files from outside are data: read within bounds, then held to a schema (by msgspec) before anything uses them."""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

MOST_BYTES = 64 * 1024 * 1024
_LEAST_INFLATED, _MOST_TIMES = 64 * 1024 * 1024, 100
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Shape = TypeVar("Shape")


class UnreadableError(Exception):
    """Why a file cannot be used, in words that follow "cannot be read: "; callers name the file and say what to do."""


def other_kind(status: os.stat_result) -> str | None:
    """Say what is there in place of a regular file; ``None`` for a regular file."""
    return None if stat.S_ISREG(status.st_mode) else _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")


def open_file(path: Path | str) -> BinaryIO:
    """Open a regular file for reading; a pipe, a device or a folder is refused without waiting for it.

    Raises:
        UnreadableError: if it is no regular file, or the system does not open it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from error
    kind = other_kind(os.fstat(handle))
    if kind is not None:
        os.close(handle)
        raise UnreadableError(f"it is {kind}")
    return open(handle, "rb")


def read_file(path: Path, *, at_most: int = MOST_BYTES) -> bytes:
    """Read a regular file of bounded size, opened by :func:`open_file`.

    Args:
        path: of the file.
        at_most: bytes that such a file may have.

    Raises:
        UnreadableError: if it is no regular file, is larger, or the system does not read it.
    """
    with open_file(path) as file:
        try:
            content = file.read(min(at_most, os.fstat(file.fileno()).st_size) + 1)  # no memory for what is not there
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error
    if len(content) > at_most:
        raise UnreadableError(f"it is larger than {at_most} bytes")
    return content


def most_inflated(compressed: int) -> int:
    """Bound the bytes that so many deflated bytes may inflate to, before they do.

    Deflate makes up to 1032 bytes of one. Pictures compress less than hundredfold unless they are nearly blank, and
    64 MiB are a blank picture of 8000 x 8000 pixels.
    """
    return max(_LEAST_INFLATED, _MOST_TIMES * compressed)


def decoded(content: bytes) -> str:
    """Decode a text file in UTF-8, with or without a byte order mark.

    Raises:
        UnreadableError: if it is no such text.
    """
    if content.startswith(_UTF16):
        raise UnreadableError("it is UTF-16, not UTF-8: save it as UTF-8")
    if b"\0" in content:
        raise UnreadableError("it holds a zero byte, so it is no text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError("it is not UTF-8") from error


def require_regular(path: Path) -> None:
    """Check, for readers that would wait for a pipe or read a device for ever; what is not there passes.

    Raises:
        UnreadableError: for what is there and is no regular file, or cannot be looked at.
    """
    try:
        kind = other_kind(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path.name}: {getattr(error, 'strerror', None) or error}") from error
    if kind is not None:
        raise UnreadableError(f"{path.name} is {kind}")


def parse_json(raw: bytes | str, shape: type[Shape]) -> Shape:
    """Read JSON of a given shape.

    Args:
        raw: the text.
        shape: what msgspec converts to: a dataclass, a ``TypedDict``, ``dict[str, Any]``, with ``msgspec.Meta`` bounds.

    Raises:
        UnreadableError: if it is not JSON, is nested too deeply, or is of another shape; says where.
    """
    try:
        content: Any = json.loads(raw)
    except RecursionError as error:
        raise UnreadableError("its JSON is nested too deeply") from error
    except ValueError as error:  # a UnicodeDecodeError too
        raise UnreadableError(f"it is not JSON ({error})") from error
    return fit(content, shape)


def fit(content: object, shape: type[Shape], *, strict: bool = True) -> Shape:
    """Hold plain data to a shape, as :func:`parse_json` does; text that says a number is one, unless ``strict``.

    Raises:
        UnreadableError: if it is of another shape; says where.
    """
    try:
        return msgspec.convert(content, shape, strict=strict)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UnreadableError(f"it is not as it should be ({error})") from error


def require(agrees: bool, otherwise: str) -> None:
    """Raise a ``ValueError`` where two things do not agree."""
    if not agrees:
        raise ValueError(otherwise)


def read_json(path: Path, shape: type[Shape], *, at_most: int = MOST_BYTES) -> Shape:
    """Read a JSON file: :func:`read_file`, then :func:`parse_json`.

    Raises:
        UnreadableError: as these do.
    """
    return parse_json(read_file(path, at_most=at_most), shape)
