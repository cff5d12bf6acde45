"""A run directory: config, metrics, TensorBoard events, checkpoint, adapter."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError
from losa_cache.train.config import TrainConfig
from losa_cache.train.state_file import load_state, save_state

# Files that options name. The run keeps a copy, since it is resumed and evaluated when theirs may have changed or gone.
KEPT_FILES = {"sampling": "sampling.csv", "val_ids": "val_ids.txt"}


class Run:
    """Files of one training run.

    ``config.json`` (options and origin), ``sampling.csv`` and ``val_ids.txt`` (where options name files),
    ``metrics.jsonl`` (a line an epoch), ``events.out.tfevents.*``, ``checkpoint.pt`` (after every epoch, and inside
    long ones; tensors and numbers only), and after the last ``adapter_model.safetensors`` and ``adapter_config.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._board: SummaryWriter | None = None

    @classmethod
    def create(cls, path: Path, config: TrainConfig, origin: dict[str, Any], files: Mapping[str, bytes]) -> "Run":
        """Start a directory.

        Args:
            path: of the directory.
            config: the options.
            origin: ``cache`` (path), ``online`` (options) and ``fields`` (identity) of what it trains on.
            files: content of the files that options name, by option.

        Raises:
            UserError: if the path is taken or cannot be written.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(f"{str(path)!r} exists: continue it with --resume, or choose another --out.") from error
        except OSError as error:
            raise UserError(f"run directory {str(path)!r} cannot be made ({error.strerror}).") from error
        for option, content in files.items():
            (path / KEPT_FILES[option]).write_bytes(content)
        options = asdict(config) | {option: KEPT_FILES[option] for option in files}
        (path / "config.json").write_text(json.dumps({"train": options, **origin}, indent=2))
        return cls(path)

    def config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """Read back the options and the origin.

        Raises:
            UserError: if this is no run directory.
        """
        try:
            content = json.loads((self.path / "config.json").read_text())
            options = content.pop("train")
            kept = {name: str(self.path / file) for name, file in KEPT_FILES.items() if options.get(name) == file}
            return TrainConfig(**options | kept), {name: content[name] for name in ("cache", "online", "fields")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{str(self.path)!r} is no run directory ({error}).") from error

    def log(self, metrics: dict[str, Any]) -> None:
        """Append an epoch's metrics, to the file and to TensorBoard."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        self._board = self._board or SummaryWriter(str(self.path), purge_step=metrics["epoch"])
        for name, value in metrics.items():
            if name != "epoch" and isinstance(value, int | float):
                self._board.add_scalar(name.replace("_", "/", 1), value, metrics["epoch"])
        self._board.flush()

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Read the metrics of all epochs so far."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        yield from (json.loads(line) for line in lines if line.endswith("}"))  # a killed write may lack its end

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint whole or not at all."""
        save_state(self.path / "checkpoint.pt", state)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """Read the checkpoint, if there is one yet, and drop metrics of epochs that it does not cover.

        Raises:
            UserError: if it cannot be read.
        """
        path = self.path / "checkpoint.pt"
        if not path.exists():
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
            return None
        try:
            state = load_state(path, device)
        except UnreadableError as error:
            raise UserError(f"checkpoint {str(path)!r} cannot be read: {error}.") from error
        self.forget_after(state["epoch"])
        return state

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of later epochs."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["epoch"] <= epoch]
        (self.path / "metrics.jsonl").write_text("".join(kept))

    def close(self) -> None:
        """Flush the events."""
        if self._board is not None:
            self._board.close()


def next_run_path(base: Path, name: str) -> Path:
    """Find the first free ``base/name-N``."""
    number = 1
    while (base / f"{name}-{number}").exists():
        number += 1
    return base / f"{name}-{number}"
