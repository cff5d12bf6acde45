"""What a worker of a cluster does for an extraction: it keeps the backbone and the open cache, and writes units."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cluster.at_worker import drop, kept
from losa_cache.errors import UserError
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.meter import Meter
from losa_cache.extract.part import Part
from losa_cache.extract.session import Extraction, Writing, mark_of
from losa_cache.extract.share import Share, run_part
from losa_cache.extract.units import Units
from losa_cache.machine.device import device_kind
from losa_cache.outside import UnreadableError

FREE = Part(free=True)
MARK_SECONDS, LOOK_SECONDS = 10.0, 0.2


@dataclass(frozen=True)
class Task:
    """What all workers do together.

    Attributes:
        config: the options.
        home: of the user who gave the command: caches without a place of their own lie below it.
        shard_bytes: target size of a shard.
        run: a name that no other command has.
    """

    config: ExtractConfig
    home: str
    shard_bytes: int
    run: str


class _Loaded:
    """Backbone and samples of a worker, for one command: files may be others when the next one comes."""

    def __init__(self, task: Task) -> None:
        drop(_Begun)  # of an earlier command, whose backbone it holds
        self.task, self.extraction = task, Extraction.open(task.config, lambda: Path(task.home))

    def close(self) -> None:
        """Let go of them."""


class _Begun:
    """The cache that a worker writes with others. Its lock and its claims end when it is closed."""

    def __init__(self, extraction: Extraction, task: Task) -> None:
        self.task, self._stack = task, ExitStack()
        opened = extraction.writing(shared=True, shard_bytes=task.shard_bytes)
        self.writing: Writing = self._stack.enter_context(opened)

    def close(self) -> None:
        """Let others have what is not finished."""
        self._stack.close()


@dataclass(frozen=True)
class Begun:
    """A cache as a worker sees it.

    Attributes:
        path: of it.
        units: number of units of work.
    """

    path: str
    units: int


@dataclass(frozen=True)
class Lacking:
    """Units that are not done.

    Attributes:
        images: that each lacks, by its number.
        done: images that are done already.
    """

    images: dict[int, int]
    done: int


def look(task: Task) -> dict[str, Any]:
    """Load backbone and samples, and say what decides the numbers. Nothing is written."""
    inputs = _loaded(task).inputs
    device = inputs.backbone.device
    return {"device": device_kind(device), "path": str(_loaded(task).path), **inputs.manifest.fields}


def begin(task: Task) -> Begun:
    """Create the cache, or open it as another process has created it.

    Raises:
        UserError: if it is not the place that the command has marked, cannot be written, or holds something else.
    """
    path = _loaded(task).path
    if not _sees_mark(path, task.run):
        raise UserError(
            f"it does not see {str(receipts_of(path))!r} as the command does that gives it work: choose an --out that "
            "all workers see."
        )
    writing = _writing(task)
    return Begun(str(writing.writer.path), len(writing.units))


def _sees_mark(path: StorePath, run: str) -> bool:
    """Look for the name of the command beside the cache, for a while: a network file system may show it late."""
    until = monotonic() + MARK_SECONDS
    while True:
        with suppress(FileNotFoundError, UnreadableError):
            if mark_of(path).read() == run.encode():
                return True
        if monotonic() > until:
            return False
        sleep(LOOK_SECONDS)


def lacking(task: Task) -> Lacking:
    """List the units that are not done.

    Raises:
        UserError: if files have changed from which shards were computed that are done.
    """
    writing = _writing(task)
    writer, units = writing.writer, writing.units
    missing = set(writer.missing())
    done = [shard for shard in range(writer.layout.shards) if shard not in missing]
    if writing.sources is not None:
        writing.sources.require_unchanged(done, renew=False)
    images = {unit: _images(units, unit, missing) for unit in range(len(units))}
    return Lacking({unit: own for unit, own in images.items() if own}, sum(len(writer.layout.rows(s)) for s in done))


def write_units(task: Task, numbers: list[int]) -> Meter:
    """Write the shards of units that are not done; wait for those that another process is writing.

    Returns:
        the counts of the work.
    """
    try:
        writing, meter = _writing(task), Meter()
        units = writing.units
        missing = set(writing.writer.missing(shard for number in numbers for shard in units.shards(number)))
        if missing:
            run_part(partial(writing.run, meter=meter), Share(writing.writer, FREE, units, missing, meter))
        return meter
    except BaseException:
        drop(_Begun)  # its claims end with it: others, or this worker, may have these units then
        raise


def finish(task: Task) -> bool:
    """Complete the cache, and say whether that was possible."""
    return _writing(task).finish() is not None


def leave() -> None:
    """Let go of the cache and the backbone."""
    drop(_Begun)
    drop(_Loaded)


def _images(units: Units, unit: int, missing: set[int]) -> int:
    return sum(len(units.layout.rows(shard)) for shard in units.shards(unit) if shard in missing)


def _loaded(task: Task) -> Extraction:
    return kept(_Loaded, lambda: _Loaded(task), lambda loaded: loaded.task == task).extraction


def _writing(task: Task) -> Writing:
    extraction = _loaded(task)
    return kept(_Begun, lambda: _Begun(extraction, task), lambda begun: begun.task == task).writing
