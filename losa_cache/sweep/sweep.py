"""``sweep``: one cache, many trials."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from losa_cache.allocator import keep_freed_memory
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.lock import lock, unlock
from losa_cache.sweep.cohort import Cohort
from losa_cache.sweep.cohorts import together
from losa_cache.sweep.config import SweepConfig
from losa_cache.sweep.materials import Materials
from losa_cache.sweep.room import largest_of, most_trials
from losa_cache.sweep.space import Choices, require_trainable
from losa_cache.sweep.study import Search
from losa_cache.sweep.trackers import open_trackers
from losa_cache.sweep.trial import Trials, trial_path
from losa_cache.train.config import TrainConfig
from losa_cache.train.run import Run
from losa_cache.train.selection import Selection
from losa_cache.train.state_file import save_state
from losa_cache.train.train import new_adapter, origin_of, save_run

STACKED = ("losa", "mlp")
MOST_TRIALS = 64  # at the same time, if nobody says otherwise
VALUE = "val_top1"


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands, after an epoch of a cohort.

    Attributes:
        trials: in all.
        finished: completed, stopped early or failed.
        epochs: of a trial that comes to its end.
        rows: of every trial that this process trained, the best first: ``number``, ``config``, ``epoch``, ``value``
            and, of one that is over, ``state``.
        seconds: since this process began.
        epochs_left: of all trials, if none is stopped early.
        epochs_done: by this process.
    """

    trials: int
    finished: int
    epochs: int
    rows: list[dict[str, Any]]
    seconds: float
    epochs_left: int
    epochs_done: int


Report = Callable[[Standing], None]


class Sweep:
    """A sweep under way. Killed at any moment, it goes on from its folder, having lost at most an epoch.

    After every epoch of a cohort, in this order: metrics to the trials' directories, values to the study, adapters of
    finished trials, their end to the study, and last the cohort's checkpoint. What a kill leaves between two of these
    is done again, with the same result.

    Args:
        folder: of the sweep, with its options.
        device: where to compute.
        residency: as of ``losa_cache.train``.
        report: is given the standing after every epoch of a cohort.
    """

    def __init__(self, folder: Path, *, device: torch.device, residency: str, report: Report) -> None:
        self.folder, self.device = folder, device
        self.config = SweepConfig.load(folder)
        self._report = report
        self.cache = open_cache(self.config.cache)
        require_trainable(self.config.space, self.config.base)
        self._require_stackable()
        self.search = Search(
            self.config.storage or f"sqlite:///{folder / 'study.db'}",
            self.config.space,
            sampler=self.config.sampler,
            pruner=self.config.pruner,
            trials=self.config.trials,
            epochs=self.config.base.epochs,
            seed=self.config.base.seed,
        )
        self._materials = Materials(self.cache, self.config, device, residency, trials=self.search.trials)
        self._trials = Trials(folder, open_trackers(self.config.trackers, folder))
        self._cohorts: dict[Path, Cohort] = {}
        self._rows: dict[int, dict[str, Any]] = {}

    def _require_stackable(self) -> None:
        side = self.config.space.get("side")
        sides = side.values if isinstance(side, Choices) else (self.config.base.side,)
        if wrong := [own for own in sides if own not in STACKED]:
            raise UserError(f"side is {wrong[0]!r}: trials of {' and '.join(STACKED)} alone train together.")
        if len(self.cache.manifest.tokens["grid"]) == 3:
            raise UserError(f"{str(self.cache.path)!r} holds videos: trials train together on images alone.")

    def run(self) -> None:
        """Train what is left to train."""
        keep_freed_memory()
        started, done = perf_counter(), 0
        with self._owned(), ExitStack() as stack:
            stack.callback(self._materials.close)
            stack.callback(self._trials.close)
            self._restore()
            while True:
                self._begin()
                if not self._cohorts:
                    return
                for path, cohort in list(self._cohorts.items()):
                    trained = len(cohort.numbers)
                    self._epoch(path, cohort)
                    done += trained
                    self._report(self._standing(perf_counter() - started, done))

    def chosen(self) -> Selection:
        """Say which samples the trials learned from, and which they were judged by."""
        return self._materials.chosen()

    def _begin(self) -> None:
        """Fill free places with new trials."""
        fresh: list[tuple[int, TrainConfig]] = []
        live = sum(len(cohort.numbers) for cohort in self._cohorts.values())
        while live + len(fresh) < self._most and (found := self.search.next()):
            number, options = found
            fresh.append((number, replace(self.config.base, **options)))
        for places in together([config for _, config in fresh], self._most):
            self._start([fresh[place] for place in places])

    @cached_property
    def _most(self) -> int:
        """How many trials train at the same time: measured before the first."""
        if self.config.concurrent is not None:
            return self.config.concurrent
        largest = largest_of(self.config, self.cache.manifest.layers)
        return min(MOST_TRIALS, most_trials(largest, self._materials.of(largest), self.device))

    def _start(self, trials: list[tuple[int, TrainConfig]]) -> None:
        material = self._materials.of(trials[0][1])
        for number, config in trials:
            leftover = trial_path(self.folder, number)
            shutil.rmtree(leftover, ignore_errors=True)  # of a kill before its cohort's first checkpoint
            self._trials.create(number, config, origin_of(self.cache, None, material), material.chosen.files)
        cohort = self._cohort(trials)
        path = self.folder / "cohorts" / f"{trials[0][0]:04d}.pt"
        self._cohorts[path] = cohort
        save_state(path, cohort.state())

    def _cohort(self, trials: list[tuple[int, TrainConfig]]) -> Cohort:
        material = self._materials.of(trials[0][1])
        adapters = [new_adapter(material.manifest, material.tail, config).to(self.device) for _, config in trials]
        numbers, configs = [number for number, _ in trials], [config for _, config in trials]
        return Cohort(numbers, configs, adapters, material, self.device)

    def _restore(self) -> None:
        """Take up what a killed sweep was at."""
        running = self.search.running()
        for path in sorted((self.folder / "cohorts").glob("*.pt")):
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            left = [number for number in state["numbers"] if number in running]  # the others ended before the kill
            if not left:
                path.unlink()
                continue
            cohort = self._cohort([(n, Run(trial_path(self.folder, n)).config()[0]) for n in state["numbers"]])
            cohort.load(state)
            cohort.keep(left)
            self._cohorts[path] = cohort
            for number in left:
                self._trials.reopen(number, state["epoch"])
                del running[number]
        for number in running:
            self.search.lose(number)

    def _epoch(self, path: Path, cohort: Cohort) -> None:
        metrics = cohort.run_epoch()
        stay, finished = [], []
        for number, own in zip(cohort.numbers, metrics, strict=True):
            self._trials.log(number, own)
            self._rows[number] = {"epoch": own["epoch"], "value": own[VALUE], "config": cohort.config_of(number)}
            if not isfinite(own["train_loss"]):
                self._end(number, "failed", self.search.fail)
            elif cohort.done:
                finished.append((number, own[VALUE]))
            elif self.search.report(number, own["epoch"], own[VALUE]):
                self._end(number, "pruned", self.search.prune)
            else:
                stay.append(number)
        if finished:
            adapters = dict(zip(cohort.numbers, cohort.adapters(), strict=True))
            for number, value in finished:
                save_run(self._trials[number], adapters[number], cohort.material, cohort.config_of(number))
                self.search.report(number, cohort.epoch, value)
                self._end(number, "complete", partial(self.search.complete, value=value))
        if not stay:
            path.unlink()
            del self._cohorts[path]
            return
        if stay != cohort.numbers:
            cohort.keep(stay)
        save_state(path, cohort.state())

    def _end(self, number: int, state: str, tell: Callable[[int], None]) -> None:
        self._trials.end(number, state)
        self._rows[number]["state"] = state
        tell(number)

    def _standing(self, seconds: float, done: int) -> Standing:
        live = sum(len(cohort.numbers) for cohort in self._cohorts.values())
        states = self.search.count()
        left = sum(len(c.numbers) * (c.configs[0].epochs - c.epoch) for c in self._cohorts.values())
        left += (self.search.trials - states - live) * self.config.base.epochs
        rows = sorted(({"number": number, **row} for number, row in self._rows.items()), key=lambda row: -row["value"])
        return Standing(self.search.trials, states, self.config.base.epochs, rows, seconds, left, done)

    def _owned(self) -> ExitStack:
        """Own the folder.

        Raises:
            UserError: if another process does.
        """
        handle = lock(self.folder / "lock")
        if handle is None:
            raise UserError(f"another process runs the sweep {str(self.folder)!r}: wait for it.")
        stack = ExitStack()
        stack.callback(unlock, handle)
        return stack


def create_sweep(folder: Path, config: SweepConfig) -> None:
    """Make a sweep's folder.

    Raises:
        UserError: if the path is taken or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{str(folder)!r} exists: continue it with --resume, or choose another --out.")
    partial_ = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial_, ignore_errors=True)
        (partial_ / "cohorts").mkdir(parents=True)
        config.save(partial_)
        partial_.rename(folder)
    except OSError as error:
        raise UserError(f"sweep {str(folder)!r} cannot be made ({error.strerror}).") from error
