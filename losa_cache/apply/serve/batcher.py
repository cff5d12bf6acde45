"""Requests put together: one thread computes, in batches of one kind, and makes changes between two of them."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

Compute = Callable[[str, Sequence[Any]], Sequence[Any]]
"""A kind and a batch of items to the result of each; an exception among the results is that of its item alone."""


@dataclass
class _Job:
    item: Any
    future: "Future[Any]" = field(default_factory=Future)
    since: float = field(default_factory=monotonic)

    def settle(self, result: Any) -> None:
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Batcher:
    """A thread that computes items in batches.

    A batch holds items of one kind. It starts when it is full, or when its first item has waited long enough; the kind
    whose first item has waited longest comes first.

    Args:
        compute: is called on the thread.
        most: items a batch.
        wait: seconds that an item waits for others, at most, while the thread has nothing else to do.
    """

    def __init__(self, compute: Compute, *, most: int, wait: float) -> None:
        self._compute, self._most, self._wait = compute, most, wait
        self._jobs: dict[str, deque[_Job]] = {}
        self._changes: deque[_Job] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether items are computed."""
        return self._thread.is_alive() and not self._closed

    def submit(self, kind: str, item: Any) -> "Future[Any]":
        """Have an item computed; a future that is cancelled before its batch starts is left out of it."""
        return self._put(kind, item)

    def between(self, change: Callable[[], Any]) -> "Future[Any]":
        """Call a function between two batches."""
        return self._put(None, change)

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _put(self, kind: str | None, item: Any) -> "Future[Any]":
        job = _Job(item)
        with self._changed:
            if self._closed:
                raise RuntimeError("the thread has been closed")
            queue = self._changes if kind is None else self._jobs.setdefault(kind, deque())
            queue.append(job)
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            kind, jobs = taken
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                items = [job.item for job in jobs]
                results = [item() for item in items] if kind is None else self._compute(kind, items)
            except Exception as error:
                results = [error] * len(jobs)
            for job, result in zip(jobs, results, strict=True):
                job.settle(result)

    def _next(self) -> tuple[str | None, list[_Job]] | None:
        """Wait for a change (of no kind), a batch, or the end."""
        with self._changed:
            while True:
                if self._changes:
                    return None, [self._changes.popleft()]
                waiting = [(queue[0].since, kind) for kind, queue in self._jobs.items() if queue]
                if not waiting and self._closed:
                    return None
                if not waiting:
                    self._changed.wait()
                    continue
                since, kind = min(waiting)
                queue, left = self._jobs[kind], since + self._wait - monotonic()
                if len(queue) >= self._most or left <= 0 or self._closed:
                    return kind, [queue.popleft() for _ in range(min(self._most, len(queue)))]
                self._changed.wait(left)
