"""Durable small steps on a file system: a name appears only with its whole content behind it."""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import google_crc32c

CHANGED = (errno.ENOENT, errno.ENOTEMPTY, errno.ESTALE)  # what another process has removed, or put there, meanwhile


def reason(error: OSError) -> str:
    """Say why the system refused, and of which file where it says so."""
    text = error.strerror or str(error) or type(error).__name__
    return f"{text}: {error.filename!r}" if error.filename is not None else text


def remedy(error: OSError) -> str:
    """Say what helps against what the system refused: words of a sentence that goes on with "or" or "and"."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "allow writing there"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "allow more open files (ulimit -n)"
    if error.errno in CHANGED:
        return "let no other process change the folder"
    return "see to that"


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file and name below a folder durable."""
    for here, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(here, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(here))


def publish(partial: Path, final: Path) -> None:
    """Rename a file or folder that is already synced to its final name, durably."""
    os.replace(partial, final)
    sync_folder(final.parent)


def clear(place: Path) -> None:
    """Remove what an earlier run left: a folder with all below it, a file, or a link, which is never followed.

    Raises:
        OSError: if it cannot be removed.
    """
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def own_partial(path: Path) -> Path:
    """Name a temporary file beside ``path`` that no other process uses, on this machine or another."""
    return path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")


@contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of ``path``, durably, when the context ends without an error.

    Args:
        path: the file.
        partial: its temporary name; by default one that every process uses. Where several processes may write ``path``
            at the same time, each needs its own (:func:`own_partial`).

    Raises:
        OSError: naming ``path``, of which nothing has changed then.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        if os.path.lexists(partial) and not stat.S_ISREG(partial.lstat().st_mode):
            clear(partial)  # a pipe would be waited for, a link followed
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # a full disk needs the room
        if isinstance(error, OSError):
            error.filename = str(path)  # a failed write names nothing
        raise


def write_whole(path: Path, content: bytes, partial: Path | None = None) -> None:
    """Write a file whole or not at all, durably; ``partial`` as of :func:`replacing`."""
    with replacing(path, partial) as file:
        file.write(content)


def link_if_none(partial: Path, path: Path) -> bool:
    """Give a file that has a temporary name its own, in one step, if there is none of that name; say whether.

    Raises:
        OSError: if it cannot be done, as on file systems without hard links.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        return partial.stat().st_nlink > 1  # a server may have done it and then have been asked once more
    return True


def create_whole(path: Path, content: bytes) -> bool:
    """Write a file whole if there is none of this name, in one step, and say whether. A power cut may lose it.

    Raises:
        OSError: as :func:`link_if_none`.
    """
    partial = own_partial(path)
    try:
        with open(partial, "wb") as file:
            file.write(content)
        return link_if_none(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Append to a file. A write that fails, as on a full disk, is taken back; one that is killed may lack its end.

    Raises:
        OSError: naming the file.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[file.write(content) :]
            except BaseException:
                file.truncate(start)
                raise
    except OSError as error:
        error.filename = str(path)
        raise


def write_json(path: Path, content: Any, partial: Path | None = None) -> None:
    """Write JSON whole or not at all, durably; ``partial`` as of :func:`replacing`."""
    write_whole(path, json.dumps(content, indent=2).encode(), partial)


def without_nan(content: Any) -> Any:
    """Give JSON in which numbers that are not defined are null: JSON has no NaN."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its own checksum, so that any byte altered since is found."""
    write_whole(path, sealed(content))


def unsealed(raw: bytes, name: str) -> dict[str, Any]:
    """Give the content of what :func:`sealed` gave.

    Raises:
        ValueError: if it is not, byte by byte, what was written.
    """
    try:
        content = json.loads(raw)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:  # a UnicodeDecodeError too
        raise ValueError(f"{name} is not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.pop("seal", None), int) or sealed(content) != raw:
        raise ValueError(f"{name} was altered")
    return content


def sealed(content: dict[str, Any]) -> bytes:
    """Give JSON with its own checksum."""
    return _plain(with_seal(content))


def with_seal(content: dict[str, Any]) -> dict[str, Any]:
    """Give a JSON object with a checksum of what it says, however it is laid out (``seal``)."""
    return content | {"seal": google_crc32c.value(_plain(content))}


def without_seal(content: dict[str, Any]) -> dict[str, Any]:
    """Give back what :func:`with_seal` took.

    Raises:
        ValueError: if it does not agree with its seal, or has none.
    """
    bare = {name: value for name, value in content.items() if name != "seal"}
    if content != with_seal(bare):
        raise ValueError("it was altered since it was written")
    return bare


def _plain(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")  # file names need not be UTF-8
