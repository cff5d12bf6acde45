"""``extract --scheduler``: the workers of a cluster write the shards, and this process says which."""

import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from losa_cache.cache.location import locate
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.writer import saying_unwritable
from losa_cache.cluster.crew import Crew
from losa_cache.cluster.ledger import ATTEMPTS, Job
from losa_cache.cluster.software import other_numbers
from losa_cache.errors import UserError
from losa_cache.extract import at_worker
from losa_cache.extract.at_worker import Task
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.meter import Meter
from losa_cache.extract.session import mark_of, remove_mark
from losa_cache.folders import home

JOBS = 16  # of each worker, so that the last ones to end leave others idle for little of the time
MOST_UNITS = 64  # of a job: a lost worker loses at most so many

log = logging.getLogger(__name__)


def extract_on_cluster(config: ExtractConfig, scheduler: str, *, shard_bytes: int, meter: Meter) -> ActivationCache:
    """Run an extraction on the workers of a cluster (``losa_cache.extract``).

    Args:
        config: the options; backbone and data set by name.
        scheduler: address of the dask.distributed scheduler.
        shard_bytes: target size of a shard.
        meter: counts the progress.

    Raises:
        UserError: for options that cannot work, a cluster that cannot do it, and for units that failed.
    """
    task = Task(_whole(config), str(home().absolute()), shard_bytes, uuid.uuid4().hex)
    with ExitStack() as marks:
        return _extract(task, scheduler, meter, partial(_mark, task, marks))


def _extract(task: Task, scheduler: str, meter: Meter, ready: Callable[[Mapping[str, Any]], None]) -> ActivationCache:
    with Crew(scheduler, (at_worker.look, task), (at_worker.begin, task), ready=ready, differ=_differ) as crew:
        try:
            crew.wait_for_workers()
            path = locate(crew.begun.path)
            _write(crew, task, meter)
            finished = crew.result(crew.submit(at_worker.finish, task, name="the end of the extraction"))
        finally:
            crew.leave(at_worker.leave)
    if not finished:
        raise UserError(f"{str(path)!r} is not complete: shards were lost meanwhile. Run the same command again.")
    return open_cache(path)


def _mark(task: Task, marks: ExitStack, seen: Mapping[str, Any]) -> None:
    """Write beside the cache who gives the work: workers look for it before they write anything. ``marks`` removes it.

    Raises:
        UserError: if this machine cannot write there.
    """
    path = locate(seen["path"])
    with saying_unwritable(path):
        if (folder := receipts_of(path).on_disk) is not None:
            folder.mkdir(parents=True, exist_ok=True)
        mark_of(path).write(task.run.encode())
        marks.callback(remove_mark, path)


def divide(units: list[int], workers: int) -> list[list[int]]:
    """Divide units into jobs of neighbours: about 16 for each worker, of at most 64 units."""
    length = max(1, min(MOST_UNITS, len(units) // (workers * JOBS)))
    places = [*range(0, len(units), length), len(units)]
    return [units[start:stop] for start, stop in pairwise(places)]


def _write(crew: Crew, task: Task, meter: Meter) -> None:
    """Have all units written that are not done.

    Raises:
        UserError: naming those that failed, when the others are done.
    """
    lacking = crew.result(crew.submit(at_worker.lacking, task, name="the list of what is missing"))
    meter.start(sum(lacking.images.values()))
    units_of: dict[Job, list[int]] = {}

    def submit(units: list[int]) -> Job:
        alone = len(units) == 1
        name = f"unit {units[0]}" if alone else f"units {units[0]} to {units[-1]}"
        job = crew.submit(at_worker.write_units, task, units, name=name, attempts=ATTEMPTS if alone else 1)
        units_of[job] = units
        return job

    failed = []
    jobs = [submit(units) for units in divide(list(lacking.images), len(crew.workers))]
    for job in crew.as_over(jobs):
        if job.state == "done":
            _count(meter, job.result)
        elif len(units_of[job]) > 1:  # one of them may be at fault, and the others are not
            jobs += [submit([unit]) for unit in units_of[job]]
        else:
            failed.append(job)
    if failed:
        numbers = ", ".join(str(unit) for job in failed for unit in units_of[job])
        images = sum(lacking.images[unit] for job in failed for unit in units_of[job])
        reasons = " ".join(f"{job.name.capitalize()} on {'; on '.join(job.failures)}" for job in failed)
        raise UserError(
            f"{images} images of units {numbers} were not extracted; all others were. {reasons} Run the same command "
            "again for what is missing."
        )


def _count(meter: Meter, done: Meter) -> None:
    """Add a job's counts. Seconds are those of all workers together."""
    for own in fields(Meter):
        if own.name not in ("total", "seconds", "_started"):
            setattr(meter, own.name, getattr(meter, own.name) + getattr(done, own.name))
    meter.update()


def _whole(config: ExtractConfig) -> ExtractConfig:
    """Write paths such that they hold on another machine.

    Raises:
        UserError: for loaded objects, and for options of several processes on one machine.
    """
    if not config.named:
        raise UserError("--scheduler needs the backbone and the data set by name: workers load them themselves.")
    if config.part is not None:
        raise UserError("--scheduler shares the work out itself: leave out --part.")
    paths: dict[str, Any] = config.paths(str(config.dataset), Path.absolute)
    if config.out is not None:
        place = locate(config.out)
        paths["out"] = str(place if place.on_disk is None else place.on_disk.absolute())
    return replace(config, **paths)


def _differ(theirs: Any, ours: Any) -> str:
    """Say why a worker cannot work with the others."""
    if isinstance(theirs, dict):
        return other_numbers(theirs, ours)
    return f"it finds {theirs.units} units of work in {theirs.path!r}, and the others {ours.units}: restart it."
