"""File descriptors within the limit that the system sets (``ulimit -n``), however many files are read."""

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock

from losa_cache.errors import UserError

WANTED = 1024  # that this process may have open, if the system lets it; select() knows no higher numbers
SHARE = 4  # one in so many is for files that are read again and again
MOST = 256
NO_MORE = (errno.EMFILE, errno.ENFILE)


class ReplacedError(Exception):
    """A file was replaced since it was first opened: what was read of it before may no longer hold."""


class Descriptors:
    """Keep the files open that were read last, up to a limit, and every file that is being read.

    Args:
        most: largest number of open files, unless more are being read.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._idle: OrderedDict[ReadFile, None] = OrderedDict()
        self._guard = Lock()

    @contextmanager
    def lent(self, file: "ReadFile") -> Iterator[int]:
        """Lend the descriptor of a file; open the file if it is closed.

        Raises:
            ReplacedError, OSError, UserError: as :meth:`ReadFile.open`.
        """
        with self._guard:
            file.users += 1
            self._idle.pop(file, None)
        try:
            handle = file.handle
            yield self._opened(file) if handle is None else handle
        finally:
            with self._guard:
                file.users -= 1
                if not file.users and file.handle is not None:
                    self._idle[file] = None
                    self._close_idle(self._most)

    def forget(self, file: "ReadFile") -> None:
        """Close a file that will not be read again."""
        with self._guard:
            if self._idle.pop(file, 0) is None:
                self._close(file)

    def _opened(self, file: "ReadFile") -> int:
        with file.opening:  # others wait for no other file than theirs
            if file.handle is None:
                with self._guard:
                    self._close_idle(self._most - 1)
                try:
                    file.open()
                except OSError as error:
                    if error.errno not in NO_MORE:
                        raise
                    with self._guard:
                        self._close_idle(0)
                    file.open()
                with self._guard:
                    self._open += 1
            assert file.handle is not None
            return file.handle

    def _close_idle(self, left: int) -> None:
        """Close idle files until only so many files are open, or none is idle."""
        while self._open > left and self._idle:
            self._close(self._idle.popitem(last=False)[0])

    def _close(self, file: "ReadFile") -> None:
        assert file.handle is not None
        os.close(file.handle)
        file.handle = None
        self._open -= 1


class ReadFile:
    """A file that may be closed between two reads.

    Attributes:
        size: bytes, known once it was opened.
        handle: its descriptor, while it is open.
        opening: a lock that the thread holds which opens it.
        users: number of threads that read it now.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self._path, self._flags = path, flags | os.O_CLOEXEC
        self._identity: tuple[int, ...] | None = None
        self.handle: int | None = None
        self.opening = Lock()
        self.users = self.size = 0

    def open(self) -> None:
        """Open the file, for the first time or again.

        Raises:
            ReplacedError: if the file was replaced since it was first opened.
            FileNotFoundError: if there is none.
            OSError: if the system does not open it.
        """
        handle = os.open(self._path, self._flags)
        found = os.fstat(handle)
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._identity not in (None, identity):
            os.close(handle)
            raise ReplacedError
        self._identity, self.size, self.handle = identity, found.st_size, handle


@cache
def descriptors() -> Descriptors:
    """Give the descriptors that this process shares: a quarter of the files that it may have open, at most 256.

    Raises the limit to 1024 if it is lower and the system permits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [limit for limit in (WANTED, hard) if limit != resource.RLIM_INFINITY]
    if soft != resource.RLIM_INFINITY and soft < min(limits):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits), hard))
            soft = min(limits)
        except (OSError, ValueError):  # macOS, for one, may permit less than it says
            pass
    allowed = WANTED if soft == resource.RLIM_INFINITY else soft
    return Descriptors(max(1, min(MOST, allowed // SHARE)))


def too_many(error: Exception) -> UserError | None:
    """Say in a sentence that no more files can be opened; ``None`` for another error."""
    if not (isinstance(error, OSError) and error.errno in NO_MORE):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UserError(f"this process may have {soft} files open, and needs more: raise the limit (ulimit -n 1024).")
