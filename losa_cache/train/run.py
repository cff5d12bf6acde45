"""A run directory: config, metrics, TensorBoard events, checkpoint, adapter. Later changes of its files are
detected.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct

from losa_cache.errors import UserError
from losa_cache.files import append, publish, with_seal, without_nan, write_json, write_whole
from losa_cache.folders import require_writable
from losa_cache.lock import lock, unlock
from losa_cache.outside import UnreadableError, fit, read_file
from losa_cache.train.config import TrainConfig
from losa_cache.train.state_file import load_state, save_state
from losa_cache.train.stored import CONFIG, KEPT_FILES, digest_of, read_run

if TYPE_CHECKING:
    from losa_cache.train.tensorboard_log import TensorBoardLog

log = logging.getLogger(__name__)

METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint.pt"
RUNS = Path("runs")
"""Where new runs go by default."""


class _Line(Struct):
    """The part of an epoch's metrics that this module reads."""

    epoch: int


class TakenError(UserError):
    """The path of a new run is taken."""


class Run:
    """Files of one training run.

    ``config.json`` (options, origin and digests of kept files, under a seal), ``sampling.csv`` and ``val_ids.txt``
    (where options name files), ``metrics.jsonl`` (a line an epoch), ``events.out.tfevents.*``, ``checkpoint.pt`` (after
    every epoch, and inside long ones; tensors, numbers and the metrics so far, under a digest), and after the last
    the folder ``adapter`` (:mod:`losa_cache.sidenet.adapter_folder`). Runs of earlier versions have no seals and no
    digests.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed = False  # until the config has been written or read
        self._events: TensorBoardLog | None = None
        self._lines: list[str] = []

    @classmethod
    def create(
        cls,
        path: Path,
        config: TrainConfig,
        origin: dict[str, Any],
        files: Mapping[str, bytes],
        beside: Mapping[str, bytes] | None = None,
    ) -> "Run":
        """Create a directory. It appears with all of these files in it.

        Args:
            path: of the directory.
            config: the options.
            origin: ``cache`` (path), ``online`` (options), ``fields`` (identity) and ``targets`` (name, kind and
                fingerprint) of what it trains on.
            files: content of the files that options name, by option.
            beside: content of more files, by name.

        Raises:
            TakenError: if the path is taken.
            UserError: if it cannot be written.
        """
        require_free(path)
        options = asdict(config) | {option: KEPT_FILES[option] for option in files}
        digests = {option: digest_of(content) for option, content in files.items()}
        partial = path.with_name(f"{path.name}.partial.{os.getpid()}")
        try:
            partial.mkdir(parents=True)
            for option, content in files.items():
                write_whole(partial / KEPT_FILES[option], content)
            for name, content in (beside or {}).items():
                write_whole(partial / name, content)
            write_json(partial / CONFIG, with_seal({"train": options, **origin, "files": digests}))
            publish(partial, path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and os.path.lexists(path):
                raise TakenError(f"{str(path)!r} exists: another process made it; choose another --out.") from error
            raise UserError(f"run directory {str(path)!r} cannot be made ({error.strerror}).") from error
        run = cls(path)
        run.sealed = True
        return run

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Lock the run for training.

        Raises:
            UserError: if another process has the lock.
        """
        try:
            handle = lock(self.path / CONFIG)
        except OSError as error:
            raise UserError(f"run {str(self.path)!r} cannot be written ({error.strerror}).") from error
        if handle is None:
            raise UserError(f"another process trains {str(self.path)!r}: wait for it, or stop it.")
        try:
            yield
        finally:
            unlock(handle)

    def config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """Read back the options and the origin.

        Raises:
            UserError: if this is no run directory, or one that was altered.
        """
        config, origin, self.sealed = read_run(self.path)
        return config, origin

    def digest(self) -> str:
        """Give the digest of the run's config; its checkpoint and its adapter hold the same digest."""
        return digest_of(read_file(self.path / CONFIG))

    def log(self, metrics: dict[str, Any]) -> None:
        """Append an epoch's metrics, to the file and to TensorBoard.

        Raises:
            UserError: if they cannot be written.
        """
        line = json.dumps(without_nan(metrics)) + "\n"
        with self._writing():
            append(self.path / METRICS, line.encode())
        self._lines.append(line)
        if self._events is None:
            from losa_cache.train.tensorboard_log import TensorBoardLog  # half a second, which only training needs

            self._events = TensorBoardLog(self.path, metrics["epoch"])
        self._events.log(metrics)

    @property
    def logged(self) -> bytes:
        """The metrics of all epochs so far, as they were written."""
        return "".join(self._lines).encode()

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Read the metrics of all epochs so far.

        Raises:
            UserError: if they cannot be read.
        """
        file = self.path / METRICS
        if not file.exists():
            return
        try:
            lines = read_file(file).decode().splitlines()
            epochs = [json.loads(line) for line in lines if line.endswith("}")]  # a killed write may lack its end
            fit(epochs, list[_Line])
            yield from epochs
        except (UnreadableError, ValueError, RecursionError) as error:
            raise UserError(f"{str(file)!r} cannot be read: it was altered ({error}).") from error

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            UserError: if it cannot be written.
        """
        with self._writing():
            save_state(self.path / CHECKPOINT, state | {"run": self.digest(), "metrics": "".join(self._lines)})

    def load_checkpoint(self, device: torch.device, *, at_most: int) -> dict[str, Any] | None:
        """Read the checkpoint, if there is one, and drop the metrics of epochs after it.

        Args:
            device: device of its tensors.
            at_most: largest size in bytes.

        Raises:
            UserError: if it cannot be read, was altered, or belongs to another run.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            with self._writing():
                (self.path / METRICS).unlink(missing_ok=True)
            return None
        try:
            state = load_state(path, device, sealed=self.sealed, at_most=at_most)
            if state.pop("run", None) not in ((self.digest(),) if self.sealed else (self.digest(), None)):
                raise UnreadableError("it is the checkpoint of another run")
            lines = state.pop("metrics", None)
            if lines is None:  # as earlier versions wrote it
                epoch = fit(state.get("epoch", 0), int)
            else:
                self._lines = fit(lines, str).splitlines(keepends=True)
        except UnreadableError as error:
            raise self.unusable(error) from error
        if lines is None:
            self.forget_after(epoch)
        else:
            with self._writing():
                write_whole(self.path / METRICS, lines.encode())
        return state

    def unusable(self, why: UnreadableError) -> UserError:
        """Say that the run cannot go on from its checkpoint."""
        return UserError(
            f"checkpoint {str(self.path / CHECKPOINT)!r} cannot be used: {why}. Put back a copy of it; if there is "
            "none, delete it, and the run begins again."
        )

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of later epochs."""
        self._lines = [json.dumps(line) + "\n" for line in self.metrics() if line["epoch"] <= epoch]
        with self._writing():
            write_whole(self.path / METRICS, self.logged)

    def close(self) -> None:
        """Make the metrics durable."""
        with suppress(OSError), open(self.path / METRICS, "rb") as file:
            os.fsync(file.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{str(error.filename or self.path)!r} cannot be written ({error.strerror}): what was there is kept; "
                "make room, or make it writable, and continue with --resume."
            ) from error


def require_free(path: Path, remedy: str = "continue it with --resume, or choose another --out") -> None:
    """Refuse a path that is taken.

    Args:
        path: of a new folder.
        remedy: what to do, as the end of a sentence.

    Raises:
        TakenError: if it is.
    """
    if os.path.lexists(path):
        raise TakenError(f"{str(path)!r} exists: {remedy}.")


def require_place(out: str | Path | None, **remedy: str) -> None:
    """Refuse a new folder that is taken or cannot be made (arguments as of :func:`require_free`).

    Without a path it is one below ``runs``.

    Raises:
        TakenError: if it is taken.
        UserError: if it cannot be made.
    """
    if out is not None:
        require_free(Path(out), **remedy)
    require_writable(RUNS if out is None else Path(out).parent)


def next_run_path(base: Path, name: str) -> Path:
    """Find the first free ``base/name-N``."""
    number = 1
    while os.path.lexists(base / f"{name}-{number}"):
        number += 1
    return base / f"{name}-{number}"
