"""Group finished runs to contenders: the seeds of one setting together, under names that distinguish the settings."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from losa_cache.cache.registry import extraction_seconds
from losa_cache.cache.store import open_cache
from losa_cache.compare.predictions import Predictions
from losa_cache.compare.record import Contender
from losa_cache.errors import UserError
from losa_cache.files import reason
from losa_cache.sidenet.spec import SIDES
from losa_cache.sweep.engine.record import is_number
from losa_cache.sweep.report.findings import say
from losa_cache.tasks import get_task
from losa_cache.train.config import RANK, TrainConfig
from losa_cache.train.run import Run
from losa_cache.train.stored import KEPT_FILES

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING}
DEFAULTS["rank"] = RANK


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        path: its directory.
        seed: its seed.
        options: all other options; files that they name are replaced by their digests.
        source: what it was trained on, except what a seed decides: the identity's fields, and options of online runs.
        cache: path of the cache that it was trained from, if there was one.
        online: whether the backbone ran on every batch, or on a part of it.
        seconds: duration of the training; ``None`` if it was not recorded.
        peak_gb: peak memory of the training; ``None`` if it was not recorded.
    """

    path: Path
    seed: int
    options: dict[str, Any]
    source: dict[str, Any]
    cache: str | None
    online: bool
    seconds: float | None
    peak_gb: float | None

    @property
    def setting(self) -> str:
        """Give a text that is equal for runs that differ only in their seed."""
        return json.dumps([self.options, self.source], sort_keys=True)


def read_run(path: Path) -> Trained:
    """Read what a run directory says of itself.

    Raises:
        UserError: if it is none, or was altered.
    """
    run = Run(path)
    config, origin = run.config()
    if config.trains is not None:
        raise UserError(
            f"run {str(path)!r} trained inside the backbone ({config.trains}), so no test cache serves it: compare it "
            "by what losa-cache eval --split gives, or let losa-cache pareto train what is compared."
        )
    if not get_task(config.task).compares:
        raise UserError(
            f"run {str(path)!r} learns the task {config.task!r}, whose predictions are not right or wrong: compare "
            "such runs by what losa-cache eval gives."
        )
    options = asdict(config) | {"rank": config.chosen_rank}  # earlier versions wrote the default down
    for name in KEPT_FILES:
        if options[name] is not None and options[name] != DEFAULTS[name] and Path(options[name]).is_file():
            options[name] = _digest(Path(options[name]))
    seed, online = options.pop("seed"), origin["online"]
    learned = dict(origin["fields"])
    if online is not None and origin["cache"] is None:
        learned["sampling"] = {**learned["sampling"], "seed": None}  # it is the run's own
    lines = list(run.metrics())
    seconds, peaks = (_numbers(lines, name) for name in ("train_seconds", "train_peak_gb"))
    return Trained(
        path,
        seed,
        options,
        {"fields": learned, "online": online},
        origin["cache"],
        online is not None,
        math.fsum(seconds) if lines and len(seconds) == len(lines) else None,
        max(peaks, default=None),
    )


def group(runs: Sequence[Trained]) -> list[list[Trained]]:
    """Group runs that differ only in their seed, in the given order.

    Raises:
        UserError: for a seed that comes twice in a setting.
    """
    alike: dict[str, list[Trained]] = {}
    for run in runs:
        members = alike.setdefault(run.setting, [])
        twin = next((other for other in members if other.seed == run.seed), None)
        if twin is not None:
            raise UserError(
                f"runs {str(twin.path)!r} and {str(run.path)!r} have the same options and the same seed {run.seed}: "
                "leave one of them out."
            )
        members.append(run)
    return list(alike.values())


def names(groups: Sequence[Sequence[Trained]]) -> list[str]:
    """Name settings by their side network and by the options in which they differ from each other and from defaults.

    If that does not distinguish two of them, they differ in their training data: then the first run's name follows.
    """
    first = [members[0] for members in groups]
    varied = [
        name
        for name in dict.fromkeys(name for run in first for name in run.options)
        if name != "side" and len({json.dumps(run.options.get(name)) for run in first}) > 1
    ]
    told = []
    for run in first:
        own = [
            f"{name.replace('_', ' ')} {_say(run.options[name])}"
            for name in varied
            if run.options.get(name) != DEFAULTS.get(name) and (name != "rank" or SIDES[run.options["side"]].rank)
        ]
        told.append(", ".join([run.options["side"], *own, *(["online"] if run.online else [])]))
    return [f"{name} ({run.path})" if told.count(name) > 1 else name for name, run in zip(told, first, strict=True)]


def contender(name: str, runs: Sequence[Trained], found: Sequence[Predictions], tested_on: str) -> Contender:
    """Build a contender of a setting's runs and their predictions."""
    seconds = [run.seconds for run in runs if run.seconds is not None]
    caches = {run.cache for run in runs}
    cache = caches.pop() if len(caches) == 1 else None
    online = runs[0].online and cache is None
    return Contender(
        name,
        [str(run.path) for run in runs],
        [run.seed for run in runs],
        np.stack([one.correct for one in found]),
        found[0].images,
        tested_on,
        found[0].parameters,
        train_seconds=math.fsum(seconds) / len(seconds) if len(seconds) == len(runs) else None,
        extract_seconds=0.0 if online else _extracted(cache),
        peak_gb=max((run.peak_gb for run in runs if run.peak_gb is not None), default=None),
    )


def _extracted(cache: str | None) -> float | None:
    try:
        opened = None if cache is None else open_cache(cache)
    except UserError:  # it is gone: nothing is known of it
        return None
    return extraction_seconds(opened.path, opened.manifest) if opened else None


def _numbers(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(line[name]) for line in lines if is_number(line.get(name))]


def _say(value: Any) -> str:
    """Write an option's value as on a command line; of a file's digest enough to tell it apart."""
    return say(value)[:19] if str(value).startswith("sha256:") else say(value)


def _digest(path: Path) -> str:
    try:
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({reason(error)}).") from error
