"""A trial as a run directory of its own, the very same as ``losa-cache train`` leaves."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError
from losa_cache.sweep.trackers import Tracker
from losa_cache.text import shown
from losa_cache.train.config import TrainConfig
from losa_cache.train.run import Run
from losa_cache.train.state_file import load_state

FLAGLESS = ("warmup",)  # no option of the command line


def trial_path(folder: Path, number: int) -> Path:
    """Directory of a trial."""
    return folder / "trials" / f"{number:04d}"


def require_epochs(folder: Path, number: int, epochs: int) -> list[dict[str, Any]]:
    """Read a trial's metrics of so many epochs.

    Raises:
        UserError: if its directory has not all of them, once each.
    """
    path = trial_path(folder, number)
    try:
        found = [line for line in Run(path).metrics() if line["epoch"] <= epochs]
        if [line["epoch"] for line in found] == list(range(1, epochs + 1)):
            return found
        reason = f"it has not the metrics of its {epochs} epochs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise UserError(
        f"trial {number} cannot be read: {str(path)!r} was changed or removed ({shown(reason)}): bring it back "
        "from a copy, or begin the sweep again."
    )


def load_group(path: Path, device: torch.device) -> dict[str, Any]:
    """Read the checkpoint of trials that train together.

    Raises:
        UserError: if it is missing or was altered.
    """
    try:
        return load_state(path, device)
    except UnreadableError as error:
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read: {error}. Bring it back from a copy, or begin the sweep again."
        ) from error


def describe(config: TrainConfig, cache: str) -> str:
    """Write the command that trains this trial alone."""
    default = asdict(TrainConfig())
    words = ["losa-cache", "train", "--cache", cache]
    for name, value in asdict(config).items():
        if value != default[name] and name not in FLAGLESS:
            words += [f"--{name.replace('_', '-')}", _text(value)]
    return shlex.join(words)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


class Trials:
    """The open run directories of a sweep.

    Args:
        folder: of the sweep.
        trackers: that are told, too.
    """

    def __init__(self, folder: Path, trackers: Sequence[Tracker]) -> None:
        self._folder, self._trackers = folder, trackers
        self._open: dict[int, Run] = {}

    def create(self, number: int, config: TrainConfig, origin: dict[str, Any], files: dict[str, bytes]) -> None:
        """Begin a trial's directory."""
        self._open[number] = Run.create(trial_path(self._folder, number), config, origin, files)
        for tracker in self._trackers:
            tracker.begin(number, config)

    def reopen(self, number: int, config: TrainConfig, epoch: int) -> None:
        """Go on with one, after so many epochs."""
        require_epochs(self._folder, number, epoch)
        run = self._open[number] = Run(trial_path(self._folder, number))
        run.forget_after(epoch)
        for tracker in self._trackers:
            tracker.begin(number, config)

    def __getitem__(self, number: int) -> Run:
        return self._open[number]

    def log(self, number: int, metrics: dict[str, Any]) -> None:
        """Append an epoch's metrics."""
        self._open[number].log(metrics)
        for tracker in self._trackers:
            tracker.log(number, metrics)

    def end(self, number: int, state: str) -> None:
        """Close a trial that is over."""
        self._open.pop(number).close()
        for tracker in self._trackers:
            tracker.end(number, state)

    def close(self) -> None:
        """Flush the events of all that is open."""
        for run in self._open.values():
            run.close()
        self._open.clear()
