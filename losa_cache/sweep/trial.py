"""A trial as a run directory of its own, the very same as ``losa-cache train`` leaves."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from losa_cache.train.config import TrainConfig
from losa_cache.train.run import Run

FLAGLESS = ("warmup",)  # no option of the command line


def trial_path(folder: Path, number: int) -> Path:
    """Directory of a trial."""
    return folder / "trials" / f"{number:04d}"


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
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, Run] = {}

    def create(self, number: int, config: TrainConfig, origin: dict[str, Any], files: dict[str, bytes]) -> None:
        """Begin a trial's directory."""
        self._open[number] = Run.create(trial_path(self._folder, number), config, origin, files)

    def reopen(self, number: int, epoch: int) -> TrainConfig:
        """Go on with one, after so many epochs; give its options."""
        run = self._open[number] = Run(trial_path(self._folder, number))
        run.forget_after(epoch)
        return run.config()[0]

    def __getitem__(self, number: int) -> Run:
        return self._open[number]

    def close(self, number: int) -> Run:
        """Flush a trial's events."""
        run = self._open.pop(number)
        run.close()
        return run

    def close_all(self) -> None:
        """Flush all."""
        for number in list(self._open):
            self.close(number)
