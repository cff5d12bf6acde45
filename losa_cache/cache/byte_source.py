"""Bytes of one file at any offset: through the page cache, past it, or from a server."""

import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.descriptors import ReadFile, descriptors

Buffer = NDArray[np.uint8]
Range = tuple[int, int, list[Buffer]]
"""An offset, a number of bytes, and the buffers that those go into, one behind the other."""

MOST_BUFFERS = 1024  # that one call of the system takes
ALIGNMENT = 4096  # of direct reads: offset, length and memory


class CutShortError(Exception):
    """A file ends before the bytes that were requested."""


class ByteSource(Protocol):
    """One file's bytes. Safe to share between threads.

    Attributes:
        name: for messages.
        size: bytes.
    """

    name: str
    size: int

    def read(self, ranges: Sequence[Range]) -> None:
        """Fill the buffers of each range.

        Raises:
            CutShortError: if the file ends earlier.
        """
        ...

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announce that these bytes, given by offsets and lengths, will be read soon."""
        ...


class FileBytes:
    """A file that is read through the page cache, so that other processes find there what this one has read.

    Raises:
        FileNotFoundError: if there is none.
        ReplacedError: from each method, if the file was replaced since it was opened first.
    """

    flags = os.O_RDONLY

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = ReadFile(path, self.flags)
        weakref.finalize(self, descriptors().forget, self._file)  # not before the last thread has let go of it
        with self._opened():
            self.size = self._file.size

    def read(self, ranges: Sequence[Range]) -> None:
        """Fill the buffers as the contract says, with one system call for neighbouring ranges."""
        with self._opened() as handle:
            for offset, length, buffers in merged(ranges):
                if os.preadv(handle, [buffer.data for buffer in buffers], offset) != length:
                    raise CutShortError

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the system to read ahead: from a disk that is twice as fast as reading a sample at a time.

        macOS has no such request: there a read waits for the disk.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        with self._opened() as handle:
            for offset, length in ranges:
                os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED)

    def _opened(self) -> AbstractContextManager[int]:
        """Give the descriptor. It may have been closed since the last read, because other files need descriptors,
        too.
        """
        return descriptors().lent(self._file)


class DirectBytes(FileBytes):
    """A file that is read past the page cache: it is larger than memory, and would only push other files out of the
    cache.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if the file system has no direct reads.
    """

    flags = os.O_RDONLY | getattr(os, "O_DIRECT", 0)

    def read(self, ranges: Sequence[Range]) -> None:
        """Fill the buffers as the contract says, from whole disk blocks."""
        with self._opened() as handle:
            for offset, length, buffers in merged(ranges):
                at = offset % ALIGNMENT
                blocks = _aligned_memory(-(-(at + length) // ALIGNMENT) * ALIGNMENT)
                # it may end within its last disk block
                if os.preadv(handle, [blocks.data], offset - at) < at + length:
                    raise CutShortError
                for buffer in buffers:
                    buffer[:] = blocks[at : at + buffer.nbytes]
                    at += buffer.nbytes

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: the page cache is not used."""


_thread = threading.local()


def _aligned_memory(size: int) -> Buffer:
    """Give this thread's memory for disk blocks; its content is valid until the next call."""
    if getattr(_thread, "size", 0) < size:
        _thread.memory, _thread.size = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8), size
    memory: Buffer = _thread.memory[:size]
    return memory


def merged(ranges: Sequence[Range]) -> Iterator[Range]:
    """Join ranges that follow each other, up to the number of buffers that one system call takes."""
    start, end, joined = 0, -1, list[Buffer]()
    for offset, length, buffers in ranges:
        if offset != end or len(joined) + len(buffers) > MOST_BUFFERS:
            if joined:
                yield start, end - start, joined
            start, end, joined = offset, offset, []
        joined += buffers
        end += length
    if joined:
        yield start, end - start, joined
