"""The options of a sweep, and their file."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import google_crc32c

from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.options import Option, options_of
from losa_cache.outside import UnreadableError, fit, parse_json, read_file
from losa_cache.sweep.engine.space import KINDS, Choices, Range, Space, grid
from losa_cache.sweep.engine.storage import without_password
from losa_cache.train.config import EARLIER, TrainConfig
from losa_cache.train.stored import KEPT_FILES

FILE = "sweep.json"
SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "halving", "hyperband", "median")
TRACKERS = ("wandb", "mlflow")


@dataclass(frozen=True)
class SweepConfig:
    """The options of a sweep.

    Attributes:
        cache: path of the training cache.
        space: the search space.
        base: every other option of a trial.
        sampler: ``grid``, every combination; ``random``, or ``tpe``, Optuna's tree-structured Parzen estimator.
        pruner: rule that stops trials early: ``none``, or Optuna's successive ``halving``, ``hyperband`` or ``median``.
        trials: number of trials; a grid has its own number.
        concurrent: largest number of trials that train at the same time; by default as many as fit in memory.
        together: largest number of trials in one pass over the cache; by default as many as train at the same time, and
            on a cluster a share of them for each worker. Results of two sweeps that differ in it differ by roundings.
        storage: URL of the study's database; by default SQLite in the sweep's folder. The file stores it without its
            password.
        val_cache: validate on all samples of this cache, in place of samples held out of the training cache.
        test_cache: cache on which the chosen trial is tested, once; by default a known cache of the same data set's
            test split.
        trackers: where every trial is logged beside TensorBoard: ``wandb``, ``mlflow``.
        retrain: train the chosen options again on training and validation samples, before the test.
    """

    cache: str
    space: Space
    base: TrainConfig = field(default_factory=TrainConfig)
    sampler: Annotated[
        str,
        Option(
            "How combinations are chosen: grid (all of them), random, or tpe (Optuna's tree-structured Parzen "
            "estimator)."
        ),
    ] = "grid"
    pruner: Annotated[
        str, Option("Rule that stops bad trials early: none, halving, hyperband or median (Optuna's pruners).")
    ] = "none"
    trials: Annotated[int | None, Option("Number of trials; random and tpe need it, a grid has its own number.")] = None
    concurrent: Annotated[
        int | None, Option("Largest number of trials that train at the same time; default: as many as fit in memory.")
    ] = None
    together: Annotated[
        int | None,
        Option(
            "Largest number of trials that train in one pass over the cache; default: all that train at the same "
            "time, or each worker's share of them (--scheduler)."
        ),
    ] = None
    storage: Annotated[
        str | None,
        Option(
            "URL of the database for the Optuna study; default: SQLite in the sweep's folder. A password in "
            "the URL is not stored."
        ),
    ] = field(default=None, repr=False)
    val_cache: Annotated[
        str | None,
        Option("Validate on all samples of this cache, instead of samples held out of the training cache.", path=True),
    ] = None
    test_cache: Annotated[
        str | None,
        Option(
            "Cache on which the chosen trial is tested, once; default: a known test cache of the same data set.",
            path=True,
        ),
    ] = None
    trackers: Annotated[
        list[str],
        Option(
            "Also log every trial to wandb or mlflow; may be given twice. TensorBoard logs are always written.",
            flag="tracker",
        ),
    ] = field(default_factory=list)
    retrain: Annotated[
        bool, Option("Before the test, train the chosen options again on training and validation samples together.")
    ] = False

    def __post_init__(self) -> None:
        named = [("sampler", self.sampler, SAMPLERS), ("pruner", self.pruner, PRUNERS)]
        named += [("tracker", tracker, TRACKERS) for tracker in self.trackers]
        for name, value, known in named:
            if value not in known:
                raise UserError(f"unknown {name} {value!r}: choose one of {', '.join(known)}.")
        for name in ("trials", "concurrent", "together"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1.")
        if self.base.trains is not None:
            raise UserError(
                f"method is {self.base.method!r}, which trains inside the backbone, and a sweep trains side networks "
                "from a cache: train it with losa-cache train --online."
            )
        if not self.space:
            raise UserError("there is nothing to sweep: list values, as in --rank 4,8,16 or --lr 1e-3,3e-4.")
        if self.sampler == "grid":
            grid(self.space)
        elif self.trials is None:
            raise UserError(f"--sampler {self.sampler} needs the number of trials: give it with --trials.")
        if self.sampler != "grid" and "seed" in self.space:
            raise UserError(
                f"--sampler {self.sampler} would choose a seed that is best by chance: leave out --seeds, and compare "
                "the best few options over several seeds by a grid."
            )
        if self.retrain and self.val_cache is not None:
            raise UserError(
                "retrain is for samples held out of the training cache: leave out --retrain or --val-cache."
            )

    @property
    def total(self) -> int:
        """How many trials there are in all."""
        return len(grid(self.space)) if self.trials is None or self.sampler == "grid" else self.trials

    def save(self, folder: Path) -> int:
        """Write the options to a sweep's folder, and a copy of the files that they name.

        Returns:
            checksum of the options.

        Raises:
            OSError: if the folder cannot be written.
            UserError: for a file that cannot be read.
        """
        space = {
            name: list(own.values) if isinstance(own, Choices) else {"low": own.low, "high": own.high}
            for name, own in self.space.items()
        }
        base = asdict(self.base)
        for option, file in KEPT_FILES.items():
            if (given := base[option]) is not None and Path(given).is_file():
                write_whole(folder / file, _read(Path(given), f"--{option.replace('_', '-')}"))
                base[option] = file
        storage = None if self.storage is None else without_password(self.storage)
        content = json.dumps(asdict(self) | {"space": space, "base": base, "storage": storage}, indent=2).encode()
        write_whole(folder / FILE, content)
        return google_crc32c.value(content)

    @classmethod
    def load(cls, folder: Path) -> "SweepConfig":
        """Read the options back.

        Raises:
            UserError: if this is no sweep's folder.
        """
        try:
            content = parse_json(read_file(folder / FILE), dict[str, Any])
            if unknown := content.keys() - {own.name for own in fields(cls)}:
                raise UnreadableError(f"it has {min(unknown)!r}, which this version does not know")
            base = fit(content.get("base", {}), dict[str, Any])
            written = fit(content | {"base": EARLIER | base}, _Written)
            if unknown := base.keys() - {own.name for own in fields(TrainConfig)}:
                raise UnreadableError(f"it has {min(unknown)!r}, which this version does not know")
            if unknown := written.space.keys() - KINDS.keys():
                raise UnreadableError(f"it searches {min(unknown)!r}, which this version does not know")
        except UnreadableError as error:
            raise UserError(f"{str(folder)!r} is no sweep ({FILE}: {error}).") from error
        space: Space = {
            name: Choices(tuple(own)) if isinstance(own, list) else own for name, own in written.space.items()
        }
        kept: dict[str, Any] = {
            name: str(folder / file) for name, file in KEPT_FILES.items() if getattr(written.base, name) == file
        }
        options: dict[str, Any] = {own.name: getattr(written, own.name) for own in fields(cls)}
        return cls(**options | {"space": space, "base": replace(written.base, **kept)})


def options_of_sweep(path: Path) -> dict[str, Any] | None:
    """Give the options of the command ``sweep`` that repeat a sweep, by their names in files.

    Args:
        path: a sweep's folder or its options; ``None`` for any other file.

    Raises:
        UserError: if this is no sweep's folder, or has options that only callers of the library can set.
    """
    folder = path.parent if path.name == FILE else path
    if not folder.is_dir():
        return None
    config = SweepConfig.load(folder)
    searched = {
        name: list(own.values) if isinstance(own, Choices) else f"{own.low}..{own.high}"
        for name, own in config.space.items()
    }
    found = asdict(config.base) | searched
    seed, warmup, layers = found.pop("seed"), found.pop("warmup"), found["layers"]
    del found["method"], found["grad_checkpointing"]  # a sweep trains side networks
    seeds = len(seed) if isinstance(seed, list) else 1
    lists = isinstance(config.base.layers, list) or (isinstance(layers, list) and any("," in str(k) for k in layers))
    beyond = {
        "epochs": "epochs" in searched,
        "layers": lists,
        "seed": seed not in (0, list(range(seeds))),
        "warmup": warmup != TrainConfig.warmup,
    }
    if lost := [name for name, is_beyond in beyond.items() if is_beyond]:
        how = "a file of --space" if lost[0] in searched else "losa_cache.sweep"
        raise UserError(f"the sweep {str(folder)!r} sets {lost[0]} as only {how} can: repeat it by that.")
    own = {option.key: getattr(config, option.name) for option in options_of(SweepConfig)}
    return found | own | {"cache": config.cache, "seeds": seeds}


def checksum(folder: Path) -> int:
    """Give the checksum of a folder's options, as :meth:`SweepConfig.save` did.

    Raises:
        UserError: if they cannot be read.
    """
    return google_crc32c.value(_read(folder / FILE, "the sweep's options"))


def _read(path: Path, what: str) -> bytes:
    try:
        return read_file(path)
    except UnreadableError as error:
        raise UserError(f"{what}: {str(path)!r} cannot be read: {error}.") from error


@dataclass(frozen=True)
class _Written(SweepConfig):
    """What the file holds."""

    space: dict[str, list[str | int | float | None] | Range]  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check nothing yet: the space is not read."""
