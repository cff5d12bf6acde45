"""Trials in Weights & Biases or MLflow, through their own clients, each trial a run of theirs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from losa_cache.errors import UserError
from losa_cache.extras import extra
from losa_cache.sweep.engine.config import TRACKERS
from losa_cache.sweep.engine.storage import hidden
from losa_cache.train.config import TrainConfig

PROJECT = "losa-cache"
TAG = "losa_cache.trial"  # by which a run of MLflow is found again
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")  # environment variables


class Tracker(Protocol):
    """The contract of a tracker of trials."""

    def start(self, number: int, config: TrainConfig) -> None:
        """Note that a trial begins, or continues after a kill."""
        ...

    def log(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Log a finished epoch of a trial."""
        ...

    def end(self, number: int, state: str) -> None:
        """Note that a trial is ``complete``, ``pruned`` or ``failed``."""
        ...


class WandbTracker:
    """Runs of the project ``losa-cache``, grouped by sweep; wandb's own environment variables say where they go.

    Args:
        folder: of the sweep, whose name is the group's.
    """

    def __init__(self, folder: Path) -> None:
        with extra("wandb", "--tracker wandb needs Weights & Biases", "wandb"):
            import wandb
        self._wandb, self._folder = wandb, folder
        self._runs: dict[int, Any] = {}

    def start(self, number: int, config: TrainConfig) -> None:
        """Start a run, or go on with it."""
        self._runs[number] = self._wandb.init(
            project=PROJECT,
            group=self._folder.name,
            name=f"{self._folder.name}-{number:04d}",
            id=f"{self._folder.name}-{number:04d}",
            config=asdict(config),
            dir=str(self._folder),
            resume="allow",
            reinit="create_new",
        )

    def log(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Log an epoch."""
        self._runs[number].log(dict(metrics), step=metrics["epoch"])

    def end(self, number: int, state: str) -> None:
        """Finish the run."""
        run = self._runs.pop(number)
        run.summary["state"] = state
        run.finish(exit_code=int(state == "failed"))


class MlflowTracker:
    """Runs of an experiment named after the sweep; mlflow's own environment variables say where it lies.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        with extra("mlflow", "--tracker mlflow needs MLflow", "mlflow"):
            from mlflow import MlflowClient
        self._client = MlflowClient()
        name = f"{PROJECT}/{folder.name}"
        known = self._client.get_experiment_by_name(name)
        self._experiment: str = self._client.create_experiment(name) if known is None else known.experiment_id
        self._runs: dict[int, str] = {}

    def start(self, number: int, config: TrainConfig) -> None:
        """Start a run, or go on with it."""
        found = self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{number}'")
        if found:
            self._runs[number] = found[0].info.run_id
            return
        run = self._client.create_run(self._experiment, tags={TAG: str(number)}, run_name=f"{number:04d}")
        self._runs[number] = run.info.run_id
        for name, value in asdict(config).items():
            self._client.log_param(run.info.run_id, name, value)

    def log(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Log an epoch."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._client.log_metric(self._runs[number], name, value, step=metrics["epoch"])

    def end(self, number: int, state: str) -> None:
        """Finish the run."""
        self._client.set_tag(self._runs[number], "state", state)
        self._client.set_terminated(self._runs.pop(number), "FAILED" if state == "failed" else "FINISHED")


_CLASSES: dict[str, type[WandbTracker] | type[MlflowTracker]] = dict(
    zip(TRACKERS, (WandbTracker, MlflowTracker), strict=True)
)


class _Told:
    """A tracker whose errors become sentences."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        with _telling(name):
            self._own: Tracker = _CLASSES[name](folder)

    def start(self, number: int, config: TrainConfig) -> None:
        """As of :class:`Tracker`."""
        with _telling(self._name):
            self._own.start(number, config)

    def log(self, number: int, metrics: Mapping[str, Any]) -> None:
        """As of :class:`Tracker`."""
        with _telling(self._name):
            self._own.log(number, metrics)

    def end(self, number: int, state: str) -> None:
        """As of :class:`Tracker`."""
        with _telling(self._name):
            self._own.end(number, state)


@contextmanager
def _telling(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of their clients and of what these are made of, with URLs and keys in their messages
        reason = hidden((str(error).strip() or type(error).__name__).splitlines()[0])
        for secret in filter(None, map(os.environ.get, SECRETS)):
            reason = reason.replace(secret, "***")
        raise UserError(f"tracker {name} failed ({reason.rstrip('.')}): --resume goes on once it works.") from None


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Open trackers by name.

    Raises:
        UserError: for one that is not installed or does not answer.
    """
    return [_Told(name, folder) for name in names]
