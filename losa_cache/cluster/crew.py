"""Jobs for the workers of a cluster, which may come and go: each is looked at first, and gets a few jobs at a time."""

import logging
import queue
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from losa_cache.cluster import at_worker
from losa_cache.cluster.at_worker import Answer, do, introduce
from losa_cache.cluster.connect import connect
from losa_cache.cluster.ledger import ATTEMPTS, LOST, Job, Ledger
from losa_cache.cluster.software import Software
from losa_cache.errors import UserError

if TYPE_CHECKING:
    from distributed import Future

LEAVE = 30.0  # seconds that workers have to let go of what they keep
RESULT = 30.0  # seconds for a result to arrive; if its worker is lost meanwhile, it never does
LOOK = 1.0  # seconds between two looks at which workers there are
GPU = "GPU"
Call = tuple[Any, ...]
Ready = Callable[[Any], object]
Differ = Callable[[Any, Any], str]

log = logging.getLogger(__name__)


class Crew:
    """The workers of a cluster that are fit for the jobs of one command.

    If any worker declares the resource ``GPU``, only such workers are taken, and each job takes one unit of it.

    Args:
        address: of the scheduler.
        look: function at the level of a module, and its arguments: a worker runs it before anything else. It changes
            nothing, and raises a ``UserError`` if the worker is not fit. All workers must give the same result: what
            more than half of those give that are there at the start.
        begin: the same for what every worker does before its first job.
        ready: is called with the result of ``look`` before a worker begins.
        differ: says why a worker is refused, from its result and that of the others.

    Attributes:
        begun: result of ``begin``.
        refused: by worker that was refused, the reason.

    Raises:
        UserError: if no scheduler answers, or ``distributed`` is not installed.
    """

    def __init__(
        self, address: str, look: Call, begin: Call = (at_worker.nothing,), *, differ: Differ, ready: Ready = id
    ) -> None:
        self.address, self.refused = address, dict[str, str]()
        self.begun: Any = None
        self._client = connect(address)
        self._look, self._begin = (introduce, Software.here(), *look), begin
        self._differ, self._ready = differ, ready
        self._ledger = Ledger()
        self._looked_at: dict[str, Future] = {}  # by worker, until it is taken or refused
        self._seen: dict[str, Any] = {}  # results of looks, by worker
        self._common: Any = None  # the one that counts
        self._given: dict[Job, Future] = {}
        self._events: queue.SimpleQueue[tuple[Future, str, Job | None]] = queue.SimpleQueue()
        self._numbers, self._run = count(), uuid.uuid4().hex[:12]
        self._next_look = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._client.status != "running":  # dask would print how it failed to connect again
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        for future in (*self._given.values(), *self._looked_at.values()):
            future.release()
        self._client.close(timeout=5)

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers that were taken."""
        return [*self._ledger.at]

    def submit(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        name: str,
        prefer: str | None = None,
        attempts: int = ATTEMPTS,
    ) -> Job:
        """Have a job done by some worker (arguments as of :class:`Job`)."""
        job = Job(work, arguments, name, prefer, attempts)
        self._ledger.add(job)
        self._give()
        return job

    def result(self, job: Job) -> Any:
        """Wait for a job.

        Raises:
            UserError: if it failed as often as it may, or no job can be done any more.
        """
        while not job.over:
            self._step()
        if job.state == "failed":
            raise UserError(f"{job.name} failed {len(job.failures)} times: {'; '.join(job.failures)}")
        return job.result

    def as_over(self, jobs: list[Job]) -> Iterator[Job]:
        """Give jobs in the order in which they are over, be they done or failed, and remove them from the list.

        More may be added to it meanwhile.
        """
        while jobs:
            for job in [job for job in jobs if job.over]:
                jobs.remove(job)
                yield job
            if jobs:
                self._step()

    def wait_for_workers(self) -> list[str]:
        """Wait until a worker is taken, and every other one that is there was looked at.

        Raises:
            UserError: if every worker is refused, or the scheduler is lost.
        """
        self._look_around()
        while self._looked_at or not self._ledger.at:
            self._step()
        return self.workers

    def leave(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have every worker do something after the job that it has, even if this process has ended by then.

        Jobs that have not begun are dropped. If all jobs are over, this waits for it.
        """
        from distributed import fire_and_forget, wait

        self._ledger.waiting.clear()
        busy = bool(self._given)
        for future in self._given.values():
            future.release()
        self._given.clear()
        if self._client.status != "running":
            return
        sent = [self._send(worker, work, *arguments) for worker in self.workers]
        fire_and_forget(sent)
        if not busy:
            with self._client.as_current(), suppress(OSError, TimeoutError):  # a worker that is lost has left
                wait(sent, timeout=LEAVE)

    def _step(self) -> None:
        """Wait for the next events, at most until it is time to look around."""
        if monotonic() >= self._next_look:
            self._look_around()
            self._next_look = monotonic() + LOOK  # with many workers, looking takes a while
        try:
            events = [self._events.get(timeout=max(0.01, self._next_look - monotonic()))]
            while not self._events.empty():
                events.append(self._events.get())
        except queue.Empty:
            return
        current = [event for event in events if self._awaited(*event)]
        for (_, worker, job), answer in zip(current, self._answers([own for own, _, _ in current]), strict=True):
            self._take(worker, job, answer)
        self._give()

    def _awaited(self, future: "Future", worker: str, job: Job | None) -> bool:
        """Whether a future was not given up."""
        return (self._looked_at.get(worker) if job is None else self._given.get(job)) is future

    def _take(self, worker: str, job: Job | None, answer: Answer) -> None:
        if job is None:
            self._looked_at.pop(worker).release()
            self._meet(worker, answer)
            return
        self._given.pop(job).release()
        if answer.reason is None:
            self._ledger.done(job, worker, answer.result)
        else:
            self._ledger.failed(job, worker, answer.reason)
            log.warning("%s failed on worker %s: %s", job.name, worker, answer.reason)

    def _answers(self, futures: list["Future"]) -> list[Answer]:
        """Read what came of futures that are over, all at once: each journey through the scheduler takes a while."""

        async def fetch(some: list["Future"]) -> list[Answer]:
            found: list[Answer] = await self._client.gather(some, asynchronous=True)
            return found

        finished = [future for future in futures if future.status == "finished"]
        try:
            found = dict(zip(finished, self._client.sync(fetch, finished, callback_timeout=RESULT), strict=True))
        except Exception:  # one of them is gone with its worker: dask raises anything, or waits for ever
            found = {}
        return [found.get(future) or Answer(reason=_end_of(future)) for future in futures]

    def _look_around(self) -> None:
        """See which workers have come, and which are gone."""
        there = self._there()
        for worker in self._ledger.at.keys() - there:
            log.warning("worker %s was lost.", worker)
            for job in self._ledger.at[worker]:
                self._given.pop(job).release()
            self._ledger.leave(worker)
        for worker in self._looked_at.keys() - there:
            self._looked_at.pop(worker).release()
        for worker in self._seen.keys() - there:
            del self._seen[worker]
        for worker in there - self._seen.keys() - self._looked_at.keys() - self.refused.keys():
            self._ask(worker, *self._look)
        self._compare()
        self._give()
        if there and there <= self.refused.keys():
            raise UserError(
                f"no worker of {self.address!r} can do this: "
                + " ".join(f"{worker}: {reason}" for worker, reason in self.refused.items() if worker in there)
            )

    def _there(self) -> set[str]:
        """List the workers that could do jobs.

        Raises:
            UserError: if the scheduler is lost.
        """
        try:
            if self._client.status != "running":
                raise OSError(f"the connection is {self._client.status}")
            # not scheduler_info(), which a thread of dask's empties of workers every two seconds
            found = self._client.sync(self._client.scheduler.identity, n_workers=-1)
        except (OSError, TimeoutError) as error:
            raise UserError(
                f"the scheduler {self.address!r} was lost ({error}): what is finished is kept. Start it again, and run "
                "the same command (sweep: --resume) to go on."
            ) from error
        known: Mapping[str, Any] = found["workers"]
        self._resources = {worker: info["resources"] for worker, info in known.items()}
        with_gpu = {worker for worker, has in self._resources.items() if has.get(GPU)}
        return with_gpu or set(known)

    def _ask(self, worker: str, work: Callable[..., Any], *arguments: Any) -> None:
        self._looked_at[worker] = self._send(worker, work, *arguments)
        self._watch(self._looked_at[worker], worker, None)

    def _meet(self, worker: str, answer: Answer) -> None:
        """Take what a worker answers to a look, or when it has begun."""
        if answer.reason is not None:
            self._refuse(worker, answer.reason)
        elif worker not in self._seen:
            self._seen[worker] = answer.result
        elif self.begun is None or answer.result == self.begun:
            self.begun = answer.result
            self._ledger.join(worker)
        else:
            self._refuse(worker, self._differ(answer.result, self.begun))
        self._compare()

    def _compare(self) -> None:
        """Have the workers begin that have seen the same as most."""
        waiting = [worker for worker in self._seen if worker not in (*self._looked_at, *self._ledger.at, *self.refused)]
        if not waiting or (self._common is None and self._looked_at):
            return
        seen = [*self._seen.values()]
        if self._common is None:
            common = max(seen, key=seen.count)
            if 2 * seen.count(common) > len(seen):
                self._ready(common)
                self._common = common
        for worker in waiting:
            if self._seen[worker] == self._common:
                self._ask(worker, *self._begin)
            else:
                other = next(own for own in (self._common, *seen) if own not in (None, self._seen[worker]))
                self._refuse(worker, self._differ(self._seen[worker], other))

    def _refuse(self, worker: str, reason: str) -> None:
        self.refused[worker] = reason
        log.warning("worker %s gets no work: %s", worker, reason)
        self._next_look = 0.0  # it may have been the last one

    def _give(self) -> None:
        while given := self._ledger.give():
            job, worker = given
            self._given[job] = self._send(worker, job.work, *job.arguments)
            self._watch(self._given[job], worker, job)

    def _send(self, worker: str, work: Callable[..., Any], *arguments: Any) -> "Future":
        return self._client.submit(
            do,
            work,
            *arguments,
            key=f"losa-cache-{self._run}-{next(self._numbers)}",
            workers=[worker],
            resources={GPU: 1} if self._resources[worker].get(GPU) else None,
            pure=False,
            retries=0,
        )

    def _watch(self, future: "Future", worker: str, job: Job | None) -> None:
        future.add_done_callback(lambda done: self._events.put((done, worker, job)))


def _end_of(future: "Future") -> str:
    """Say why a future has no result: the worker could not even begin, or dask gave up on it."""
    if future.status == "error":
        reason = future.exception()
        return f"{type(reason).__name__}: {reason}"
    return LOST if future.status == "finished" else f"dask says {future.status}"
