"""Locks between processes: ``flock`` on a file, which dies with the process that holds it.

Some network file systems have no ``flock`` (NFS without its lock service, Lustre unless mounted with it). There a file
in this machine's folder for temporary files is locked in its place: processes of this user on this machine still keep
out of each other's way, and a warning says that those on other machines do not.
"""

import errno
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from losa_cache.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)

log = logging.getLogger(__name__)
_held: set[int] = set()


def _let_go_in_child() -> None:
    """Close locks in a forked decoding process, which may outlive its parent for a few seconds."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def lock(file: Path, *, wait: bool = False, shared: bool = False) -> int | None:
    """Lock a file; ``None`` if another process has it, and this one does not wait for it.

    Args:
        file: to lock; it is made if there is none.
        wait: for another process that has it.
        shared: with all others who lock it so, in place of alone.

    Raises:
        UserError: if something else than a file is in its place.
        OSError: if it cannot be made.
    """
    try:
        handle = _locked(file, wait=wait, shared=shared)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "the file system of %s has no locks (%s): another process on this machine is kept out, one on another "
            "machine is not.",
            *(file, error.strerror),
        )
        handle = _locked(_stand_in(file), wait=wait, shared=shared)
    if handle is not None:
        _held.add(handle)
    return handle


@contextmanager
def locked(file: Path, busy: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Lock a file for a while, and give the handle, which processes that get it hold locked as long as they live.

    Args:
        file: to lock.
        busy: is called if another process has it, before this one waits; it may raise instead.

    Raises:
        UserError, OSError: as :func:`lock`.
    """
    handle = lock(file)
    if handle is None:
        busy()
        handle = lock(file, wait=True)
    assert handle is not None
    try:
        yield handle
    finally:
        unlock(handle)


def unlock(handle: int) -> None:
    """Let go of a lock."""
    _held.discard(handle)
    os.close(handle)


def _locked(file: Path, *, wait: bool, shared: bool) -> int | None:
    while True:
        handle = _open(file)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            if _is_named(handle, file):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was removed before it was locked, and keeps nobody out


def _is_named(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _open(file: Path) -> int:
    """Open or make a file, but never wait for what lies in its place."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except IsADirectoryError as error:
        raise UserError(f"{str(file)!r} is a folder where a lock should be: remove it.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{str(file)!r} is no regular file, where a lock should be: remove it.")
    return handle


def _stand_in(file: Path) -> Path:
    """Name the file that is locked in place of one whose file system has no locks."""
    folder = Path(tempfile.gettempdir()) / f"losa-cache-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{str(folder)!r} belongs to another user: remove it, or set TMPDIR to a folder of your own.")
    return folder / hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
