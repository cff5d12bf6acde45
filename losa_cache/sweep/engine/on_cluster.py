"""Cohorts that train on the workers of a cluster, one on a worker. This process decides everything and trains nothing.

All cohorts train their next epoch at the same time. Their results are taken in the order in which one process would
have trained them, so trials are stopped and drawn as they are there.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Self

import torch

from losa_cache.cluster.crew import Crew
from losa_cache.cluster.ledger import Job
from losa_cache.cluster.software import other_numbers
from losa_cache.machine.device_names import require_device_name
from losa_cache.sweep.engine import at_worker
from losa_cache.sweep.engine.at_worker import Order, Site, Trained
from losa_cache.sweep.engine.config import SweepConfig, checksum
from losa_cache.sweep.engine.here import CHECKPOINTS, ConfigOf, Numbered
from losa_cache.sweep.engine.progress import Group
from losa_cache.sweep.engine.record import ToBeat, TrialRecord
from losa_cache.sweep.engine.results import tested_on
from losa_cache.sweep.engine.trial import load_group
from losa_cache.train.config import TrainConfig
from losa_cache.train.residency import require_residency

log = logging.getLogger(__name__)


class CohortAtWorker:
    """A cohort that some worker trains (``losa_cache.sweep.engine.here.Team``).

    Args:
        cluster: that trains it.
        trials: all of the checkpoint, or of a new cohort.
        name: with which the names of its files begin.
        numbers: of those that are trained.
        epoch: finished epochs.
        file: last checkpoint; by default there is none.
    """

    def __init__(
        self,
        cluster: "OnCluster",
        trials: Sequence[Numbered],
        name: str,
        *,
        numbers: Sequence[int],
        epoch: int = 0,
        file: str | None = None,
    ) -> None:
        self._cluster, self._configs = cluster, dict(trials)
        self.name, self.numbers, self.epoch, self.file = name, list(numbers), epoch, file or ""
        self._worker: str | None = None
        self._order = self._next_order()
        self._job: Job | None = None

    @property
    def done(self) -> bool:
        """Whether the last epoch is over."""
        return self.epoch == self.config_of(self.numbers[0]).epochs

    def config_of(self, number: int) -> TrainConfig:
        """Give a trial's options."""
        return self._configs[number]

    def begin(self) -> None:
        """Have a worker begin the next epoch."""
        if self._job is None:
            self._order = self._next_order()
            self._job = self._submit(at_worker.train_epoch, self._order, name=f"epoch {self.epoch + 1}")

    def run_epoch(self) -> list[dict[str, Any]]:
        """Wait for the epoch."""
        self.begin()
        assert self._job is not None
        trained = self._wait(self._job)
        self._job = None
        self._configs = {number: self._configs[number] for number in self._order.numbers}
        self.epoch += 1
        return trained.metrics

    def finish(self, numbers: Sequence[int]) -> None:
        """Have the worker write adapters and results; another one trains the last epoch again for that."""
        self._cluster.crew.result(self._submit(at_worker.finish, self._order, list(numbers), name="the end"))

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all trials but these."""
        self.numbers = list(numbers)

    def save(self) -> None:
        """Have a worker write the first checkpoint; each later one is written with its epoch."""
        if not self.file:
            self._wait(self._submit(at_worker.start, self._order, name="the start"))

    def _wait(self, job: Job) -> Trained:
        trained: Trained = self._cluster.crew.result(job)
        self.file, self._worker = trained.file, job.worker
        return trained

    def _submit(self, work: Any, *arguments: Any, name: str) -> Job:
        what = f"{name} of trials {', '.join(map(str, self.numbers))}"
        return self._cluster.crew.submit(work, *arguments, name=what, prefer=self._worker)

    def _next_order(self) -> Order:
        options = {number: self._cluster.options_of(config) for number, config in self._configs.items()}
        return Order(self._cluster.site, self.name, options, self.numbers, self.epoch, self.file or None)


@dataclass(frozen=True)
class Cluster:
    """Where trials train.

    Attributes:
        scheduler: address of its dask.distributed scheduler.
        device, residency: as of ``losa_cache.sweep``, for each worker.

    Raises:
        UserError: for a device or residency that is none.
    """

    scheduler: str
    device: str | None = None
    residency: str = "auto"

    def __post_init__(self) -> None:
        require_residency(self.residency)
        if self.device is not None:
            require_device_name(self.device)


class OnCluster:
    """Train on a cluster (``losa_cache.sweep.engine.here.Trainers``).

    Args:
        folder: of the sweep, which all workers see.
        config: of it.
        cluster: that trains.

    Raises:
        UserError: if no scheduler answers.
    """

    def __init__(self, folder: Path, config: SweepConfig, cluster: Cluster) -> None:
        self._folder, self._config = folder.resolve(), config
        self.site = Site(str(self._folder), checksum(folder), cluster.device, cluster.residency)
        self.crew = Crew(cluster.scheduler, (at_worker.look, self.site), differ=other_numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.crew.__exit__(*error)

    def start(self, trials: Sequence[Numbered]) -> CohortAtWorker:
        """Begin with untrained adapters."""
        numbers = [number for number, _ in trials]
        cohort = CohortAtWorker(self, trials, f"{numbers[0]:04d}", numbers=numbers)
        cohort.save()
        return cohort

    def restore(self, group: Group, config_of: ConfigOf) -> CohortAtWorker:
        """Go on from a checkpoint, which may hold trials that were dropped since."""
        state = load_group(self._folder / CHECKPOINTS / group.file, torch.device("cpu"))
        trials = [(number, config_of(number)) for number in state["numbers"]]
        name = group.file.partition("-")[0]
        return CohortAtWorker(self, trials, name, numbers=group.numbers, epoch=state["epoch"], file=group.file)

    def options_of(self, config: TrainConfig) -> dict[str, Any]:
        """Give the searched options of a trial."""
        return {name: getattr(config, name) for name in self._config.space}

    def most(self, largest: TrainConfig) -> int:
        """Measure on a worker how many it has room for, and count the workers."""
        workers = len(self.crew.wait_for_workers())
        job = self.crew.submit(at_worker.measure_most, self.site, largest, name="the measurement of free memory")
        room: int = self.crew.result(job)
        return room * workers

    def together(self, most: int) -> int:
        """Give each worker its share."""
        found = ceil(most / len(self.crew.wait_for_workers()))
        log.info(
            "up to %d trials train together. One machine gives identical results with --together %d.", found, found
        )
        return found

    def to_beat(self, path: Path) -> ToBeat:
        """Have a worker fit it."""
        job = self.crew.submit(at_worker.fit_to_beat, self.site, str(path.resolve()), name="the fit of the probe")
        found: ToBeat = self.crew.result(job)
        return found

    def test(self, chosen: TrialRecord) -> dict[str, Any] | None:
        """Have a worker test the chosen trial."""
        cache = tested_on(self._folder, self._config, chosen)
        path = None if cache is None else str(cache.path)
        if path is None and not self._config.retrain:
            return None
        found: dict[str, Any] | None = self.crew.result(
            self.crew.submit(at_worker.test, self.site, chosen, path, name="the test of the chosen trial")
        )
        return found
