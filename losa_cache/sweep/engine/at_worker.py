"""What a worker of a cluster does for a sweep: it reads the sweep's folder and the caches, and trains cohorts.

A worker keeps the data and the cohorts that it trained last, so an epoch begins where the last one ended. Whatever it
does not have, it reads from the checkpoint that the sweep's progress names. Both ways give the same bits.
"""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from losa_cache.cache.store import open_cache
from losa_cache.cluster.at_worker import kept
from losa_cache.errors import UserError
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import device_kind
from losa_cache.sweep.engine.concurrency import most_trials
from losa_cache.sweep.engine.config import FILE, SweepConfig, checksum
from losa_cache.sweep.engine.here import CohortHere
from losa_cache.sweep.engine.record import ToBeat, TrialRecord
from losa_cache.sweep.engine.results import evaluate_chosen
from losa_cache.sweep.engine.sweep_data import SweepData
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement

MOST_COHORTS = 16  # that a worker keeps; their trained tensors are small beside the cache


@dataclass(frozen=True)
class Site:
    """Where a sweep is, as a worker sees it too.

    Attributes:
        folder: of the sweep.
        options: checksum of its options.
        device, residency: as of ``losa_cache.sweep``.
    """

    folder: str
    options: int
    device: str | None
    residency: str


@dataclass(frozen=True)
class Order:
    """An epoch of a cohort.

    Attributes:
        site: of the sweep.
        name: of the cohort.
        trials: options of every trial that the checkpoint holds, by number.
        numbers: of the trials that are still trained.
        epoch: number of finished epochs.
        file: last checkpoint; ``None`` before there is one.
    """

    site: Site
    name: str
    trials: dict[int, dict[str, Any]]
    numbers: list[int]
    epoch: int
    file: str | None


@dataclass(frozen=True)
class Trained:
    """What an epoch came to.

    Attributes:
        metrics: of each trial (``Cohort.run_epoch``).
        file: the last checkpoint.
    """

    metrics: list[dict[str, Any]]
    file: str


class _Open:
    """A sweep that a worker has opened.

    Args:
        site: where it is.

    Attributes:
        live: cohorts as the last epochs left them, by name.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.folder = site, Path(site.folder)
        try:
            found = checksum(self.folder)
        except UserError as error:
            raise UserError(
                f"it does not see the sweep's folder {site.folder!r}: choose an --out that all workers see."
            ) from error
        if found != site.options:
            raise UserError(f"{FILE} in {site.folder!r} is another one there: choose an --out that all workers see.")
        keep_freed_memory()
        self.config = SweepConfig.load(self.folder)
        self.placement = Placement.choose(site.device, site.residency)
        self.live: OrderedDict[str, CohortHere] = OrderedDict()
        self.data = SweepData(open_cache(self.config.cache), self.config, self.placement, trials=self.config.total)

    def take(self, order: Order) -> CohortHere:
        """Give a cohort as the order has it. It is live no more: if the epoch fails, the checkpoint counts."""
        cohort = self.live.pop(order.name, None)
        if cohort is None or cohort.epoch != order.epoch or not set(order.numbers) <= set(cohort.numbers):
            cohort = self._read(order)
        if cohort.numbers != order.numbers:
            cohort.keep(order.numbers)
        return cohort

    def put(self, cohort: CohortHere) -> None:
        """Keep a cohort for its next epoch."""
        self.live[cohort.name] = cohort
        while len(self.live) > MOST_COHORTS:
            self.live.popitem(last=False)

    def config_of(self, options: dict[str, Any]) -> TrainConfig:
        """Give a trial's options."""
        return replace(self.config.base, **options)

    def _read(self, order: Order) -> CohortHere:
        configs = {number: self.config_of(options) for number, options in order.trials.items()}
        if order.file is None:
            return CohortHere([*configs.items()], self.data, self.folder, order.name)
        device = self.placement.device
        return CohortHere.restored(order.file, order.numbers, configs.__getitem__, self.data, self.folder, device)

    def close(self) -> None:
        """Free what it holds."""
        self.live.clear()
        self.data.close()


def look(site: Site) -> dict[str, str]:
    """Say what this worker computes on, and which caches and targets it sees.

    Raises:
        UserError: if it does not see the sweep or its caches.
    """
    opened = _open(site)
    device = opened.placement.device
    return {"device": device_kind(device)} | opened.data.identities()


def train_epoch(order: Order) -> Trained:
    """Train an epoch, validate, and write a checkpoint, unless it was the last."""
    opened = _open(order.site)
    cohort = opened.take(order)
    metrics = cohort.run_epoch()
    if not cohort.done:
        _save(cohort)
    opened.put(cohort)
    return Trained(metrics, cohort.file)


def start(order: Order) -> Trained:
    """Write the checkpoint of untrained trials."""
    opened = _open(order.site)
    cohort = opened.take(order)
    _save(cohort)
    opened.put(cohort)
    return Trained([], cohort.file)


def finish(order: Order, numbers: Sequence[int]) -> None:
    """Write adapters and results of trials (``CohortHere.finish``).

    Args:
        order: of their last epoch, which is trained again if this worker did not train it.
        numbers: of these trials.
    """
    opened = _open(order.site)
    live = opened.live.pop(order.name, None)
    if live is None or live.epoch != order.epoch + 1 or not live.judged.keys() >= set(numbers):
        live = opened.take(order)
        live.run_epoch()
    live.finish(numbers)


def measure_most(site: Site, largest: TrainConfig) -> int:
    """Measure how many trials this worker has room for at the same time."""
    return most_trials(largest, _open(site).data.of(largest))


def fit_to_beat(site: Site, path: str) -> ToBeat:
    """Fit the probe that trials have to beat."""
    return _open(site).data.to_beat(Path(path))


def test(site: Site, chosen: TrialRecord, test_cache: str | None) -> dict[str, Any] | None:
    """Test the chosen trial, on the cache that the command found."""
    opened = _open(site)
    cache = None if test_cache is None else open_cache(test_cache)
    return evaluate_chosen(opened.folder, opened.config, chosen, opened.placement, cache)


def _open(site: Site) -> _Open:
    return kept(_Open, lambda: _Open(site), lambda opened: opened.site == site)


def _save(cohort: CohortHere) -> None:
    """Write a checkpoint under a name that no other attempt has: a worker that was thought lost may still write."""
    cohort.save(f"{cohort.name}-{cohort.epoch:04d}-{uuid.uuid4().hex[:8]}.pt")
