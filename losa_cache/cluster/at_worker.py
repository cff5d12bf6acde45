"""What runs on a worker around every job: one job at a time, in a thread, with what the process keeps between jobs.

dask runs jobs in threads beside its event loop. So heartbeats go on while torch computes, which frees the interpreter.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from losa_cache.cluster.software import Software
from losa_cache.errors import UserError
from losa_cache.failures import sentence

if TYPE_CHECKING:
    from distributed import Worker

IDLE = 600.0  # seconds without a job, after which a worker frees what it keeps
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Answer:
    """What a job came to, as plain data: an error of a library might not be known where the answer is read.

    Attributes:
        result: of the work.
        reason: of a failure, a sentence.
    """

    result: Any = None
    reason: str | None = None


class _Worker:
    """What a worker has between jobs. Two workers may share a process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[type, Any] = {}
        self._timer = threading.Timer(IDLE, self._rest)

    @contextmanager
    def job(self) -> Iterator[None]:
        """Let nothing else run meanwhile."""
        with self.lock:
            self._timer.cancel()
            try:
                yield
            finally:
                self._timer = threading.Timer(IDLE, self._rest)
                self._timer.daemon = True
                self._timer.start()

    def _rest(self) -> None:
        """Free memory and locks: the command that gave the jobs may have been killed."""
        with self.lock:
            while self.kept:
                self.kept.popitem()[1].close()


_workers: "WeakKeyDictionary[Worker, _Worker]" = WeakKeyDictionary()
_making = threading.Lock()


def do(work: Callable[..., Any], *arguments: Any) -> Answer:
    """Do a job, after those before it, and answer for it."""
    with _this().job():
        try:
            return Answer(work(*arguments))
        except Exception as error:
            return Answer(reason=_reason(error))


def introduce(expected: Software, work: Callable[..., Any], *arguments: Any) -> Any:
    """Check that a worker runs the expected code, then whatever else a job needs (``work``).

    Raises:
        UserError: if it runs another code.
    """
    if difference := expected.difference(Software.here()):
        raise UserError(f"{difference}.")
    return work(*arguments)


def nothing() -> bool:
    """Do nothing."""
    return True


def kept(kind: type[Kept], make: Callable[[], Kept], fits: Callable[[Kept], bool] = lambda _: True) -> Kept:
    """Give what this worker keeps of a kind; make it if there is none, or it does not fit.

    What is replaced is closed first, by its ``close()``: both together may be too large for a device.
    """
    found = _this().kept
    if kind in found and fits(found[kind]):
        return cast(Kept, found[kind])
    drop(kind)
    made = found[kind] = make()
    return made


def drop(kind: type) -> None:
    """Close what this worker keeps of a kind, if there is something."""
    if (former := _this().kept.pop(kind, None)) is not None:
        former.close()


def _this() -> _Worker:
    from distributed import get_worker

    worker = get_worker()
    with _making:
        return _workers.setdefault(worker, _Worker())


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return sentence(error) or f"{type(error).__name__}: {error}"
