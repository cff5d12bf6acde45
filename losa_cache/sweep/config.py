"""The options of a sweep, and their file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.files import write_json
from losa_cache.sweep.space import Choices, Range, Space
from losa_cache.train.config import TrainConfig

FILE = "sweep.json"


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep does.

    Attributes:
        cache: path of the training cache.
        space: what is searched.
        base: every other option of a trial.
        sampler: ``grid``, every combination; ``random``, or ``tpe``, Optuna's tree-structured Parzen estimator.
        pruner: what stops trials early: ``none``, or Optuna's successive ``halving``, ``hyperband`` or ``median``.
        trials: how many, but for a grid.
        concurrent: that train at the same time, at most; by default as many as memory allows.
        storage: URL of the study's database; by default SQLite in the sweep's folder.
        val_cache: validate on all of this cache, in place of samples held out of the training cache.
        test_cache: on which the chosen trial is tested, once; by default a known one of the same data set's test split.
        trackers: that every trial is logged to beside TensorBoard: ``wandb``, ``mlflow``.
        retrain: train the chosen trial anew, on training and validation samples, before its test.
    """

    cache: str
    space: Space
    base: TrainConfig = field(default_factory=TrainConfig)
    sampler: str = "grid"
    pruner: str = "none"
    trials: int | None = None
    concurrent: int | None = None
    storage: str | None = None
    val_cache: str | None = None
    test_cache: str | None = None
    trackers: list[str] = field(default_factory=list)
    retrain: bool = False

    def __post_init__(self) -> None:
        for name in ("trials", "concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1.")
        if not self.space:
            raise UserError("there is nothing to sweep: list values, as in --rank 4,8,16 or --lr 1e-3,3e-4.")
        if self.sampler != "grid" and "seed" in self.space:
            raise UserError(
                f"--sampler {self.sampler} would choose the luckiest seed: leave --seeds to a grid, for the best few."
            )
        if self.retrain and self.val_cache is not None:
            raise UserError(
                "retrain is for samples held out of the training cache: leave out --retrain or --val-cache."
            )

    def save(self, folder: Path) -> None:
        """Write the options to a sweep's folder."""
        space = {
            name: list(own.values) if isinstance(own, Choices) else {"low": own.low, "high": own.high}
            for name, own in self.space.items()
        }
        write_json(folder / FILE, asdict(self) | {"space": space})

    @classmethod
    def load(cls, folder: Path) -> "SweepConfig":
        """Read the options back.

        Raises:
            UserError: if this is no sweep's folder.
        """
        try:
            content: dict[str, Any] = json.loads((folder / FILE).read_text())
            space: Space = {
                name: Choices(tuple(own)) if isinstance(own, list) else Range(**own)
                for name, own in content.pop("space").items()
            }
            return cls(**content | {"space": space, "base": TrainConfig(**content["base"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(folder)!r} is no sweep ({error}).") from error
