"""What an interrupted run has done: a file beside the output, to which every batch is appended.

It begins with ``MAGIC``. Frames follow: length and CRC-32C of a content, 4 bytes each, little-endian, and the content
in MessagePack. The first frame is a header, each other one a batch. A kill may leave a frame without its end, which is
cut off.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import numpy as np

from losa_cache.apply.predict.table import Rows, Table
from losa_cache.errors import UserError
from losa_cache.files import append
from losa_cache.lock import lock, unlock

MAGIC = b"losa-cache predict 1\n"
_FRAME = struct.Struct("<II")
MOST_BYTES = 2**30  # of a frame


class Skipped(msgspec.Struct, frozen=True):
    """An input without an answer.

    Attributes:
        id: of the input.
        reason: why, as its decoder says.
    """

    id: str
    reason: str


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """What a journal goes on from.

    Attributes:
        table: ``Table.described()``.
        base: rows of the output that was there when it began.
    """

    table: dict[str, Any]
    base: int


class _Batch(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    ids: list[str]
    values: list[bytes]
    skipped: list[Skipped]


class Journal:
    """A journal, locked: no other process writes the same output.

    Args:
        path: of the journal; it is made where it is not there.
        table: that is being made.

    Attributes:
        header: as it was when the journal began; ``None`` of a new one, until :meth:`begin`.

    Raises:
        UserError: if another process has it.
        OSError: if it cannot be made, or read.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self.path, self._table = path, table
        self._lock = _locked(path)
        self._file = open(path, "r+b", buffering=0)  # what is appended by another handle is read at once
        self.header: Header | None = None
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        """Read the header, and cut off what a kill has left behind the last whole frame."""
        begins = self._file.read(len(MAGIC))
        end = len(MAGIC) if begins == MAGIC else 0
        try:
            if not MAGIC.startswith(begins):
                raise ValueError("it is no journal")
            for content in self._frames() if end else ():
                if self.header is None:
                    self.header = msgspec.msgpack.decode(content, type=Header)
                end += _FRAME.size + len(content)
        except ValueError as error:  # of msgspec, too
            raise UserError(f"{str(self.path)!r} cannot be read ({error}): remove it, and begin again.") from error
        self._file.truncate(end if self.header else 0)

    def begin(self, base: int) -> None:
        """Write the header of a new journal, whose output has so many rows."""
        header = Header(self._table.described(), base)
        append(self.path, MAGIC)
        self._append(msgspec.msgpack.encode(header))
        self.header = header

    def add(self, rows: Rows, skipped: list[Skipped]) -> int:
        """Append a batch, and say how many bytes it takes."""
        values = [np.ascontiguousarray(own, dtype="<f4").tobytes() for own in rows.values]
        return self._append(msgspec.msgpack.encode(_Batch(rows.ids, values, skipped)))

    def batches(self) -> Iterator[tuple[Rows, list[Skipped]]]:
        """Give what was appended, batch by batch."""
        frames = self._frames()
        next(frames, None)
        for content in frames:
            batch = msgspec.msgpack.decode(content, type=_Batch)
            shapes = ((len(batch.ids), answer.width) for answer in self._table.answers)
            values = (
                np.frombuffer(own, dtype="<f4").reshape(shape) for own, shape in zip(batch.values, shapes, strict=True)
            )
            yield Rows(batch.ids, tuple(values)), batch.skipped

    def rows(self) -> Iterator[Rows]:
        """Give the rows of all batches."""
        return (rows for rows, _ in self.batches())

    def skipped(self) -> Iterator[Skipped]:
        """Give all inputs without an answer."""
        return (entry for _, skipped in self.batches() for entry in skipped)

    def remove(self) -> None:
        """Remove it: what it holds is in the output."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of it; it stays for a later run."""
        self._file.close()
        unlock(self._lock)

    def _append(self, content: bytes) -> int:
        frame = _FRAME.pack(len(content), google_crc32c.value(content)) + content
        append(self.path, frame)
        return len(frame)

    def _frames(self) -> Iterator[bytes]:
        """Read the contents of whole frames, up to the first that is none."""
        at = len(MAGIC)
        while True:
            self._file.seek(at)
            head = self._file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, checksum = _FRAME.unpack(head)
            content = self._file.read(length) if length <= MOST_BYTES else b""
            if len(content) < length or not length or google_crc32c.value(content) != checksum:
                return
            at += _FRAME.size + length
            yield content


def _locked(path: Path) -> int:
    """Lock the file at a path; one that another process has just removed is made anew."""
    while (handle := lock(path)) is not None:
        try:
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        unlock(handle)
    raise UserError(f"another process is writing {str(path)!r}: wait for it, or choose another --out.")
