"""Which job goes to which worker next. Pure.

Jobs are given to workers by name and a few at a time, so that what a lost worker had is known, and a fast worker does
not wait while jobs lie in the queue of a slow one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

DEPTH = 2  # jobs of a worker: the one that it computes, and the next
ATTEMPTS = 3
LOST = "the worker was lost while it had this job"


@dataclass(eq=False)
class Job:
    """Work for one worker.

    Attributes:
        work: function at the level of a module.
        arguments: of it; they are small.
        prefer: worker that can do it at less cost, because it has what the job needs in memory.
        name: what messages call it.
        attempts: how often it may fail.
        worker: that has it, or did it.
        failures: reason of each failed attempt.
        failed_at: workers that failed.
        result: of the work, once it is done.
        state: ``waiting``, ``given``, ``done`` or ``failed``.
    """

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    name: str
    prefer: str | None = None
    attempts: int = ATTEMPTS
    worker: str | None = None
    failures: list[str] = field(default_factory=list)
    failed_at: set[str] = field(default_factory=set)
    result: Any = None
    state: str = "waiting"

    @property
    def over(self) -> bool:
        """Whether nothing more is done for it."""
        return self.state in ("done", "failed")


class Ledger:
    """Jobs that wait, and those that each worker has, in the order in which it got them."""

    def __init__(self) -> None:
        self.waiting: list[Job] = []
        self.at: dict[str, list[Job]] = {}

    def add(self, job: Job) -> None:
        """Put a job behind all others."""
        self.waiting.append(job)

    def join(self, worker: str) -> None:
        """Let a worker have jobs."""
        self.at.setdefault(worker, [])

    def leave(self, worker: str) -> None:
        """Take a lost worker's jobs back, to be given first.

        What it had first counts as failed: it may be what the worker died of.
        """
        lost = self.at.pop(worker, [])
        for job in lost[1:]:
            job.state = "waiting"
        self.waiting[:0] = lost[1:]
        if lost:
            self._failed(lost[0], worker, LOST)

    def give(self) -> tuple[Job, str] | None:
        """Give the next job to a worker; ``None`` if no worker has room for one, or no job waits."""
        room = {worker: len(jobs) for worker, jobs in self.at.items() if len(jobs) < DEPTH}
        for place, job in enumerate(self.waiting):
            if (worker := self._choose(job, room)) is not None:
                del self.waiting[place]
                job.state, job.worker = "given", worker
                self.at[worker].append(job)
                return job, worker
        return None

    def done(self, job: Job, worker: str, result: Any) -> None:
        """Take the result of a job."""
        self.at[worker].remove(job)
        job.result, job.state = result, "done"

    def failed(self, job: Job, worker: str, reason: str) -> None:
        """Take a failure; the job is given again, unless that was the last attempt."""
        self.at[worker].remove(job)
        self._failed(job, worker, reason)

    def _failed(self, job: Job, worker: str, reason: str) -> None:
        job.failures.append(f"{worker}: {reason}")
        job.failed_at.add(worker)
        job.state = "failed" if len(job.failures) >= job.attempts else "waiting"
        if job.state == "waiting":
            self.waiting.insert(0, job)

    def _choose(self, job: Job, room: dict[str, int]) -> str | None:
        """Take the worker with the fewest jobs, but one at which the job failed only if there is no other."""
        others: Collection[str] = self.at.keys() - job.failed_at or self.at.keys()
        free = [worker for worker in room if worker in others]
        return min(free, key=lambda worker: (room[worker], worker != job.prefer), default=None)
