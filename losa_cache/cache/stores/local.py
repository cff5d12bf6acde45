"""Folders of a file system that this machine has mounted."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Self

from losa_cache.cache.byte_source import DirectBytes, FileBytes
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import StorePath
from losa_cache.errors import UserError
from losa_cache.files import create_whole, own_partial, write_whole
from losa_cache.folders import settled_path
from losa_cache.outside import UnreadableError, other_kind, read_file, require_regular

if TYPE_CHECKING:
    from losa_cache.cache.local_lock import LocalLock

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class LocalPath(PosixPath, StorePath):
    """A ``pathlib.Path`` that is a place in a store, so that users can do with it whatever they do with a path."""

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Take a path, with ``~``, ``.`` and every link followed, so that a cache has one name alone.

        Its lock and its receipts lie beside that name: by another name a second process would pass them by.

        Raises:
            UserError: for a path that cannot be one of a cache, or a link that leads nowhere.
        """
        path = settled_path(text)
        if not path.name:
            raise UserError(f"{str(text)!r} cannot be a cache: name a folder below it.")
        return cls(path)

    @property
    def on_disk(self) -> Path:
        """The path itself."""
        return self

    def scan(self) -> Iterator[tuple[str, int]]:
        """Give every file below this folder, as the file system has them."""
        for path in self.rglob("*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # a link to nowhere, or removed meanwhile by another process
                continue
            if stat.S_ISREG(status.st_mode):
                yield path.relative_to(self).as_posix(), status.st_size

    def is_folder(self, *files: str) -> bool:
        """Whether there is a folder, whatever is in it."""
        return self.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        return self.stat().st_size

    def read(self) -> bytes:
        """Read a regular file whole; a pipe or a device is refused before anybody waits for it."""
        try:
            return read_file(self, at_most=self.size())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error

    def open_bytes(self, *, direct: bool = False) -> FileBytes:
        """Open the file.

        Raises:
            FileNotFoundError: if there is none.
            DamagedShardError: if it is no regular file, or cannot be opened.
            OSError: if it cannot be opened past the page cache for another reason than that the file system knows no
                such reads.
        """
        try:
            require_regular(self)
        except UnreadableError as error:
            raise DamagedShardError(str(error)) from error
        if direct:
            try:
                return DirectBytes(self)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        try:
            return FileBytes(self)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedShardError(f"it cannot be opened: {error.strerror}") from error

    def write(self, content: bytes) -> None:
        """Write the file to a temporary name, sync it and rename it; make its folder, but none above that."""
        self.parent.mkdir(exist_ok=True)
        write_whole(self, content, own_partial(self))

    def create(self, content: bytes) -> bool:
        """Write the file to a temporary name and link it to its own; make its folder, but none above that."""
        self.parent.mkdir(exist_ok=True)
        try:
            if create_whole(self, content):
                return True
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise UserError(
                f"the file system of {str(self)!r} has no hard links ({error.strerror}), by which processes agree who "
                "writes what: extract without --part, or choose another --out."
            ) from error
        with suppress(FileNotFoundError):  # removed meanwhile
            if (kind := other_kind(self.lstat())) is not None:
                raise UserError(f"{str(self)!r} is {kind}, where a file of losa-cache should be: remove it.")
        return False

    def lock(self, *, shared: bool = False) -> "LocalLock":
        """Take the lock on the file ``lock`` among the receipts."""
        from losa_cache.cache.local_lock import LocalLock  # only writers need Zarr

        return LocalLock(self, shared=shared)
