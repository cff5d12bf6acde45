"""``sweep``: one cache, many trials."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.files import publish
from losa_cache.lock import lock, unlock
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.outside import UnreadableError
from losa_cache.sidenet.adapter_folder import CONFIG as ADAPTER
from losa_cache.sidenet.adapter_folder import FOLDER, TENSORS
from losa_cache.sidenet.spec import SIDES, listed, stackable
from losa_cache.sweep.engine.checksums import checksums, require_unchanged
from losa_cache.sweep.engine.concurrency import largest_of
from losa_cache.sweep.engine.config import SweepConfig, checksum
from losa_cache.sweep.engine.earlier_version import earlier_progress
from losa_cache.sweep.engine.grouping import together
from losa_cache.sweep.engine.held_out_results import FILE as JUDGED
from losa_cache.sweep.engine.here import CHECKPOINTS, Here, Team, Trainers
from losa_cache.sweep.engine.on_cluster import Cluster, OnCluster
from losa_cache.sweep.engine.probes import FILE as PROBE
from losa_cache.sweep.engine.progress import LOST, Group, Progress, Trial, load_progress
from losa_cache.sweep.engine.record import COMPLETE, FAILED, PRUNED, STATES, ToBeat
from losa_cache.sweep.engine.search import Search
from losa_cache.sweep.engine.space import Choices, require_trainable
from losa_cache.sweep.engine.storage import same_database
from losa_cache.sweep.engine.study import StudyCopy
from losa_cache.sweep.engine.sweep_data import TARGETS, SweepData
from losa_cache.sweep.engine.trial import Trials, require_epochs, trial_path
from losa_cache.sweep.report.trackers import open_trackers
from losa_cache.tasks import Metric
from losa_cache.text import shown
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from losa_cache.train.selection import Selection
from losa_cache.train.stored import CONFIG, KEPT_FILES
from losa_cache.train.train import origin_of

MOST_TRIALS = 64  # at the same time, if nobody says otherwise


@dataclass(frozen=True)
class Standing:
    """The progress of a sweep after an epoch of a cohort.

    Attributes:
        trials: number of all trials.
        finished: completed, stopped early or failed.
        epochs: of a trial that comes to its end.
        rows: of every trial that this process trained, the best first: ``number``, ``config``, ``epoch``, ``value``
            and, of one that is over, ``state``.
        seconds: since this process began.
        epochs_left: of all trials, if none is stopped early.
        epochs_done: by this process.
        metric: that values are of.
    """

    trials: int
    finished: int
    epochs: int
    rows: list[dict[str, Any]]
    seconds: float
    epochs_left: int
    epochs_done: int
    metric: Metric


Report = Callable[[Standing], None]


class Sweep:
    """A running sweep. If it is killed at any moment, it continues from its folder, and the result is the same as
    without the kill.

    ``progress.json`` says what has happened. It is replaced as a whole after every epoch of a group of trials.
    Everything that this file relies on is written before it: metrics, adapters of finished trials, and the group's
    checkpoint, under a name of its own. The study in the database, which only shows the progress, is written after it.
    A kill between two of these steps leaves files that nothing relies on, and work that is repeated with the same
    result, bit for bit on the same machine: the next step is a pure function of the progress.

    Args:
        folder: of the sweep, with its options.
        placement: where to compute, and where activations are kept.
        report: is called with the progress after every epoch of a group.
        storage: URL of the study's database again, if it has a password, because that is not stored.
        probe: file that stores the baseline probe; by default one in the folder.
        cluster: whose workers train, in place of this process, which then only reads labels.

    Attributes:
        to_beat: the probe of the same cache, once trials are trained.
    """

    progress: Progress
    to_beat: ToBeat
    _search: Search
    _study: StudyCopy

    def __init__(
        self,
        folder: Path,
        *,
        placement: Placement,
        report: Report,
        storage: str | None = None,
        probe: Path | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.folder, self.placement = folder, placement
        self._probe = folder / PROBE if probe is None else probe
        self.config = SweepConfig.load(folder)
        self._report = report
        if self.config.storage is not None:
            storage = same_database(self.config.storage, storage)
        elif storage is not None:
            raise UserError("this sweep's study is in its own folder: leave out --storage.")
        self._storage = storage
        self._require_kept()
        self._metric = self.config.base.learns.selection
        self.cache = open_cache(self.config.cache)
        require_trainable(self.config.space, self.config.base)
        self._require_stackable()
        self._data = SweepData(self.cache, self.config, placement, trials=self.config.total)
        self._data.require_choosable()
        self._cluster = cluster
        self.trainers: Trainers = Here(folder, self.config, self._data, placement)
        self._trials = Trials(folder, open_trackers(self.config.trackers, folder))
        self._cohorts: list[Team] = []  # of the progress's groups, in their order
        self._rows: dict[int, dict[str, Any]] = {}
        self._lock: int | None = None

    def _require_stackable(self) -> None:
        side = self.config.space.get("side")
        sides = side.values if isinstance(side, Choices) else (self.config.base.side,)
        if wrong := [own for own in sides if not SIDES[own].stacks]:
            known = listed(stackable(), "and")
            raise UserError(f"side is {wrong[0]!r}, but only trials of {known} train together.")
        if len(self.cache.manifest.tokens["grid"]) == 3:
            raise UserError(f"{str(self.cache.path)!r} holds videos, but trials train together only on images.")

    def run(self) -> None:
        """Train all trials that are not finished.

        Raises:
            UserError: if the folder cannot be written, was damaged, or another process runs the sweep.
        """
        keep_freed_memory()
        with self._owned(), telling_where(self.folder), ExitStack() as stack:
            stack.callback(self._data.close)
            stack.callback(self._trials.close)
            self._restore(stack)
            self.to_beat = self.trainers.to_beat(self._probe)
            started, done = perf_counter(), 0
            while True:
                if self.progress.turn >= len(self._cohorts):
                    self._begin()
                if not self._cohorts:
                    return
                for (
                    cohort
                ) in self._cohorts:  # what has trained in this round trains in the next one, whatever others do
                    cohort.begin()
                trained = len(self._cohorts[self.progress.turn].numbers)
                self._epoch(self.progress.turn)
                done += trained
                self._report(self._standing(perf_counter() - started, done))

    def chosen(self) -> Selection:
        """Give the training samples and the held-out samples of the trials."""
        return self._data.chosen()

    def _restore(self, stack: ExitStack) -> None:
        """Restore the state of a killed sweep."""
        config = self.config
        stored = load_progress(self.folder, config.space)
        self.progress = earlier_progress(self.folder, config, self._storage) if stored is None else stored
        if self.progress.config not in (None, checksum(self.folder)):
            raise UserError(
                f"the options of the sweep {str(self.folder)!r} (sweep.json) were changed after it began: bring "
                "them back, or begin another sweep."
            )
        self._require_unchanged()
        self._require_same_caches()
        base = config.base
        self._search = Search(
            config.space,
            sampler=config.sampler,
            pruner=config.pruner,
            trials=config.total,
            epochs=base.epochs,
            seed=base.seed,
            known=self.progress.trials,
            higher=self._metric.higher,
        )
        self.progress.save(self.folder)
        self._study = StudyCopy(self.folder, self._storage, config.space, self.progress, higher=self._metric.higher)
        stack.callback(self._study.close)
        named = {group.file for group in self.progress.groups}
        for path in (self.folder / CHECKPOINTS).iterdir():
            if path.name not in named:
                path.unlink()
        known = {trial_path(self.folder, number) for number in range(len(self.progress.trials))}
        for path in set((self.folder / "trials").glob("*")) - known:  # begun, and killed before that was committed
            shutil.rmtree(path)
        for group in self.progress.groups:
            cohort = self.trainers.restore(group, self._config_of)
            self._cohorts.append(cohort)
            for number in group.numbers:
                self._trials.reopen(number, cohort.config_of(number), cohort.epoch)

    def _require_unchanged(self) -> None:
        """Refuse trials whose files are not as they were written, before more is trained beside them."""
        for number, trial in enumerate(self.progress.trials):
            if trial.state != LOST:
                require_epochs(self.folder, number, trial.epochs, trial.files)

    def _require_kept(self) -> None:
        """Refuse kept files of options that are not as they were written, before they say what is held out.

        Raises:
            UserError: naming one.
        """
        stored = load_progress(self.folder, self.config.space)
        try:
            require_unchanged(self.folder, {} if stored is None else stored.files)
        except UnreadableError as error:
            raise UserError(
                f"the sweep {str(self.folder)!r} cannot go on ({error}): bring the file back from a copy, or begin "
                "another sweep."
            ) from error

    def _require_same_caches(self) -> None:
        """Refuse caches other than those of the first trials."""
        identities = self._data.identities()
        for option, identity in self.progress.caches.items():
            if identities.get(option) != identity:
                what, told = option.replace("_", " "), f"is another one now ({identities.get(option)}, not {identity})"
                if option in TARGETS:
                    what, told = TARGETS[option], "was replaced"
                raise UserError(
                    f"the {what} of the sweep {str(self.folder)!r} {told}: bring the old one back, or begin another "
                    "sweep."
                )
        self.progress.caches = identities

    def _config_of(self, number: int) -> TrainConfig:
        return replace(self.config.base, **self.progress.trials[number].options)

    def _begin(self) -> None:
        """Begin new trials while there is room."""
        numbers: list[int] = []
        live = sum(len(cohort.numbers) for cohort in self._cohorts)
        most = self._most() if self.progress.count(*STATES) < self.config.total else 0
        while live + len(numbers) < most and (drawn := self._search.next()):
            numbers.append(drawn[0])
            self.progress.trials.append(Trial(drawn[1]))
        self.progress.turn = 0
        if not numbers:
            return
        for places in together([self._config_of(number) for number in numbers], self._together(most)):
            self._start([(numbers[place], self._config_of(numbers[place])) for place in places])
        self._commit()

    def _most(self) -> int:
        """Give the number of trials that train at the same time; it is measured before the first trial and stored."""
        if self.config.concurrent is not None:
            return self.config.concurrent
        if self.progress.most is None:
            largest = largest_of(self.config, self.cache.manifest.layers)
            self.progress.most = min(MOST_TRIALS, self.trainers.most(largest))
        return self.progress.most

    def _together(self, most: int) -> int:
        """Give the largest number of trials that train in one pass."""
        if self.config.together is not None:
            return min(self.config.together, most)
        if self.progress.together is None:
            self.progress.together = self.trainers.together(most)
        return min(self.progress.together, most)

    def _start(self, trials: list[tuple[int, TrainConfig]]) -> None:
        data = self._data.of(trials[0][1])
        for number, config in trials:
            self._trials.create(number, config, origin_of(self.cache, None, data), data.chosen.files)
            self._note(number, CONFIG, *KEPT_FILES.values())
        cohort = self.trainers.start(trials)
        self._cohorts.append(cohort)
        self.progress.groups.append(Group(cohort.file, list(cohort.numbers)))

    def _epoch(self, turn: int) -> None:
        """Train an epoch of a group, and record its results."""
        cohort, group = self._cohorts[turn], self.progress.groups[turn]
        metrics = cohort.run_epoch()
        ended: dict[int, str] = {}
        for number, measured in zip(cohort.numbers, metrics, strict=True):
            self.progress.trials[number].files |= self._trials.log(number, measured)
            value, config = measured[self._metric.held_out], cohort.config_of(number)
            self._rows[number] = {"epoch": measured["epoch"], "value": value, "config": config}
            if state := self._judged(number, measured, last=cohort.done):
                ended[number] = self._rows[number]["state"] = state
        if COMPLETE in ended.values():
            complete = [number for number in cohort.numbers if ended[number] == COMPLETE]
            cohort.finish(complete)
            for number in complete:
                self._note(number, f"{FOLDER}/{TENSORS}", f"{FOLDER}/{ADAPTER}", JUDGED)
        for number, state in ended.items():
            self._trials.end(number, state)
        stay = [number for number in cohort.numbers if number not in ended]
        if stay:
            if ended:
                cohort.keep(stay)
            cohort.save()
            self.progress.groups[turn] = Group(cohort.file, stay)
            self.progress.turn = turn + 1
        else:
            del self._cohorts[turn], self.progress.groups[turn]
        self._commit()
        for file in {group.file, cohort.file} - {own.file for own in self.progress.groups}:
            (self.folder / CHECKPOINTS / file).unlink(missing_ok=True)

    def _note(self, number: int, *names: str) -> None:
        """Note the checksums of what was written to a trial's directory."""
        self.progress.trials[number].files |= checksums(trial_path(self.folder, number), *names)

    def _judged(self, number: int, metrics: dict[str, Any], *, last: bool) -> str | None:
        """Say how a trial ends after an epoch; ``None`` if it continues."""
        trial = self.progress.trials[number]
        if not (isfinite(metrics["train_loss"]) and isfinite(metrics["val_loss"])):
            trial.state = FAILED
        else:
            trial.values.append(metrics[self._metric.held_out])
            stop = self._search.report(number, metrics["epoch"], metrics[self._metric.held_out])
            if not (last or stop):
                return None
            trial.state = COMPLETE if last else PRUNED
        self._search.end(number, trial.state, trial.values)
        return trial.state

    def _commit(self) -> None:
        self.progress.save(self.folder)
        self._study.update(self.progress.trials)

    def _standing(self, seconds: float, done: int) -> Standing:
        live = sum(len(cohort.numbers) for cohort in self._cohorts)
        finished = self.progress.count(COMPLETE, PRUNED, FAILED)
        left = sum(len(c.numbers) * (c.config_of(c.numbers[0]).epochs - c.epoch) for c in self._cohorts)
        left += (self.config.total - finished - live) * self.config.base.epochs
        rows = sorted(
            ({"number": number, **row} for number, row in self._rows.items()),
            key=lambda row: -self._metric.merit(row["value"]),
        )
        return Standing(self.config.total, finished, self.config.base.epochs, rows, seconds, left, done, self._metric)

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Lock the folder, and connect to the cluster if there is one; a nested call does nothing.

        Raises:
            UserError: if another process does, or no scheduler answers.
        """
        if self._lock is not None:
            yield
            return
        with telling_where(self.folder):
            self._lock = lock(self.folder / "lock")
        if self._lock is None:
            raise UserError(f"another process runs the sweep {str(self.folder)!r}: wait for it.")
        try:
            if self._cluster is None:
                yield
                return
            with OnCluster(self.folder, self.config, self._cluster) as self.trainers:
                yield
        finally:
            unlock(self._lock)
            self._lock = None


@contextmanager
def telling_where(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` of a sweep into one sentence.

    Raises:
        UserError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        file = shown(str(error.filename or folder))
        raise UserError(
            f"the sweep {str(folder)!r} stopped at {file!r} ({error.strerror or error}): once that is mended, "
            "--resume goes on."
        ) from error


def create_sweep(folder: Path, config: SweepConfig) -> None:
    """Make a sweep's folder.

    Raises:
        UserError: if the path is taken or cannot be written.
    """
    try:
        if folder.exists():  # as "." does, which has no name to add to
            raise UserError(f"{str(folder)!r} exists: continue it with --resume, or choose another --out.")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / CHECKPOINTS).mkdir(parents=True)
        checksum = config.save(partial)
        Progress(config=checksum, files=checksums(partial, *KEPT_FILES.values())).save(partial)
        publish(partial, folder)
    except OSError as error:
        raise UserError(f"sweep {str(folder)!r} cannot be made ({error.strerror}).") from error
