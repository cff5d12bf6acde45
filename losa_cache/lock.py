"""Locks between processes: ``flock`` on a file, which dies with the process that holds it."""

import fcntl
import os
from pathlib import Path

_held: set[int] = set()


def _let_go_in_child() -> None:
    """Close locks in a forked decoding process, which may outlive its parent for a few seconds."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def lock(file: Path, *, wait: bool = False) -> int | None:
    """Lock a file; ``None`` if another process has it, and this one does not wait for it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    _held.add(handle)
    return handle


def unlock(handle: int) -> None:
    """Let go of a lock."""
    _held.discard(handle)
    os.close(handle)
