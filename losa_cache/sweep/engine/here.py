"""Cohorts that train in this process, with their files in the folder of a sweep."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from losa_cache.sweep.engine.cohort import Cohort
from losa_cache.sweep.engine.concurrency import most_trials
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.held_out_results import save_held_out_results
from losa_cache.sweep.engine.progress import Group
from losa_cache.sweep.engine.record import ToBeat, TrialRecord
from losa_cache.sweep.engine.results import evaluate_chosen, tested_on
from losa_cache.sweep.engine.sweep_data import SweepData
from losa_cache.sweep.engine.trial import load_group, trial_path
from losa_cache.train.config import TrainConfig
from losa_cache.train.loop import finish
from losa_cache.train.placement import Placement
from losa_cache.train.run import Run
from losa_cache.train.saved import new_adapter, save_run
from losa_cache.train.state_file import save_state

CHECKPOINTS = "cohorts"
Numbered = tuple[int, TrainConfig]
ConfigOf = Callable[[int], TrainConfig]


class Team(Protocol):
    """Trials that train together, wherever that is.

    Attributes:
        numbers, epoch: as of :class:`Cohort`.
        file: name of the last checkpoint, below ``cohorts``.
    """

    numbers: list[int]
    epoch: int
    file: str

    @property
    def done(self) -> bool:
        """Whether the last epoch is over."""
        ...

    def config_of(self, number: int) -> TrainConfig:
        """Give a trial's options."""
        ...

    def begin(self) -> None:
        """Begin the next epoch, if that is done elsewhere and has not begun."""
        ...

    def run_epoch(self) -> list[dict[str, Any]]:
        """Train an epoch, or wait for it (``Cohort.run_epoch``)."""
        ...

    def finish(self, numbers: Sequence[int]) -> None:
        """Write into the directories of these trials their adapters and their results on held-out images."""
        ...

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all trials but these."""
        ...

    def save(self) -> None:
        """Write a checkpoint beside the one before it."""
        ...


class Trainers(Protocol):
    """Where a sweep's trials are trained."""

    def start(self, trials: Sequence[Numbered]) -> Team:
        """Begin with trials."""
        ...

    def restore(self, group: Group, config_of: ConfigOf) -> Team:
        """Go on from a checkpoint."""
        ...

    def most(self, largest: TrainConfig) -> int:
        """Give the number of trials like this one for which there is room at the same time."""
        ...

    def together(self, most: int) -> int:
        """Give the largest number of trials that train together if so many train at the same time."""
        ...

    def to_beat(self, path: Path) -> ToBeat:
        """Fit the probe that trials have to beat, or read it from its file."""
        ...

    def test(self, chosen: TrialRecord) -> dict[str, Any] | None:
        """Test the chosen trial (:func:`evaluate_chosen`)."""
        ...


class CohortHere(Cohort):
    """A cohort of this process.

    Args:
        trials: with their options.
        data: of the sweep's trials.
        folder: of the sweep.
        name: of the cohort, with which the names of its files begin.
    """

    def __init__(self, trials: Sequence[Numbered], data: SweepData, folder: Path, name: str) -> None:
        own = data.of(trials[0][1])
        numbers, configs = [number for number, _ in trials], [config for _, config in trials]
        adapters = [new_adapter(own.manifest, own.tail, config, own.targets.names).to(own.device) for config in configs]
        super().__init__(numbers, configs, adapters, own)
        self._folder, self.name, self._refit = folder, name, data.holds_out_its_own
        self.file = f"{name}-0000.pt"

    @classmethod
    def restored(
        cls, file: str, numbers: Iterable[int], config_of: ConfigOf, data: SweepData, folder: Path, device: torch.device
    ) -> "CohortHere":
        """Read some of a checkpoint's trials back.

        Raises:
            UserError: if the checkpoint is missing or was altered.
        """
        state = load_group(folder / CHECKPOINTS / file, device)
        trials = [(number, config_of(number)) for number in state["numbers"]]
        cohort = cls(trials, data, folder, file.partition("-")[0].removesuffix(".pt"))
        cohort.load(state)
        cohort.file = file
        if cohort.numbers != (left := list(numbers)):
            cohort.keep(left)
        return cohort

    def begin(self) -> None:
        """Do nothing: this process trains when it asks for the results."""

    def finish(self, numbers: Sequence[int]) -> None:
        """Write what is left of these trials."""
        trained = dict(zip(self.numbers, self.adapters(), strict=True))
        config = self.config_of(numbers[0])
        probes = finish([trained[number] for number in numbers], self.data, config, refit=self._refit)
        for number, probe in zip(numbers, probes, strict=True):
            path = trial_path(self._folder, number)
            save_run(Run(path), trained[number], self.data, self.config_of(number), probe)
            save_held_out_results(path, self.judged[number])

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint; ``name`` says it otherwise than its epoch does."""
        self.file = name or f"{self.name}-{self.epoch:04d}.pt"
        save_state(self._folder / CHECKPOINTS / self.file, self.state())


class Here:
    """Train in this process.

    Args:
        folder: of the sweep.
        config: of it.
        data: of its trials.
        placement: where to compute.
    """

    def __init__(self, folder: Path, config: SweepConfig, data: SweepData, placement: Placement) -> None:
        self._folder, self._config, self._data, self._placement = folder, config, data, placement

    def start(self, trials: Sequence[Numbered]) -> Team:
        """Begin with untrained adapters."""
        cohort = CohortHere(trials, self._data, self._folder, f"{trials[0][0]:04d}")
        cohort.save()
        return cohort

    def restore(self, group: Group, config_of: ConfigOf) -> Team:
        """Read a checkpoint."""
        device = self._placement.device
        return CohortHere.restored(group.file, group.numbers, config_of, self._data, self._folder, device)

    def most(self, largest: TrainConfig) -> int:
        """Measure it on this device."""
        return most_trials(largest, self._data.of(largest))

    def together(self, most: int) -> int:
        """Give all: one device trains them faster in one pass."""
        return most

    def to_beat(self, path: Path) -> ToBeat:
        """Fit it on this device."""
        return self._data.to_beat(path)

    def test(self, chosen: TrialRecord) -> dict[str, Any] | None:
        """Test it on this device."""
        cache = tested_on(self._folder, self._config, chosen)
        return evaluate_chosen(self._folder, self._config, chosen, self._placement, cache)
