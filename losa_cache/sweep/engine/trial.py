"""A trial as a run directory of its own, the same as that of ``losa-cache train``."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import google_crc32c
import torch

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, read_file
from losa_cache.sweep.engine.checksums import require_unchanged
from losa_cache.sweep.report.trackers import Tracker
from losa_cache.text import shown
from losa_cache.train.config import TrainConfig
from losa_cache.train.run import METRICS, Run
from losa_cache.train.state_file import load_state

FLAGLESS = ("warmup",)  # no option of the command line


def trial_path(folder: Path, number: int) -> Path:
    """Directory of a trial."""
    return folder / "trials" / f"{number:04d}"


def require_epochs(folder: Path, number: int, epochs: int, files: Mapping[str, int]) -> list[dict[str, Any]]:
    """Read a trial's metrics of so many epochs, and compare its files with their checksums.

    Args:
        folder: of the sweep.
        number: of the trial.
        epochs: that it has trained.
        files: checksums, as of ``Trial.files``.

    Raises:
        UserError: if its directory lacks the metrics of an epoch or has them twice, or a file was altered.
    """
    path = trial_path(folder, number)
    try:
        found = [line for line in Run(path).metrics() if line["epoch"] <= epochs]
        if [line["epoch"] for line in found] != list(range(1, epochs + 1)):
            raise UnreadableError(f"its metrics.jsonl has not the metrics of its {epochs} epochs")
        require_unchanged(path, {name: checksum for name, checksum in files.items() if name != METRICS})
        if METRICS in files and _logged(path / METRICS, epochs) != files[METRICS]:
            raise UnreadableError(f"{METRICS} was altered")
        return found
    except (UnreadableError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise UserError(
        f"trial {number} cannot be read: {str(path)!r} was changed or removed ({shown(reason)}): bring it back "
        "from a copy, or begin the sweep again."
    )


def _logged(file: Path, epochs: int) -> int:
    """Give the checksum of the metrics of the first epochs: a killed sweep may have written more."""
    return google_crc32c.value(b"".join(read_file(file).splitlines(keepends=True)[:epochs]))


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
            tracker.start(number, config)

    def reopen(self, number: int, config: TrainConfig, epoch: int) -> None:
        """Reopen the directory of a trial after so many epochs."""
        run = self._open[number] = Run(trial_path(self._folder, number))
        run.forget_after(epoch)
        for tracker in self._trackers:
            tracker.start(number, config)

    def __getitem__(self, number: int) -> Run:
        return self._open[number]

    def log(self, number: int, metrics: dict[str, Any]) -> dict[str, int]:
        """Append an epoch's metrics; give the checksum of all so far, by the name of their file."""
        self._open[number].log(metrics)
        for tracker in self._trackers:
            tracker.log(number, metrics)
        return {METRICS: google_crc32c.value(self._open[number].logged)}

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
