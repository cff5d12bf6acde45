"""``train_auto``: choose a few options on held-out samples of the training cache, then train on all of them.

*Not from the paper.* No test set is opened. :mod:`losa_cache.sweep.engine.choice` makes the choice. If few samples are
held out, :mod:`losa_cache.sweep.engine.folds` makes several splits. The search stores nothing until it is finished: if
it is interrupted, it begins again. The training after it is a run like any other, and can be resumed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from losa_cache.cache.location import Location
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.store import ActivationCache, latest_training_cache, open_cache
from losa_cache.errors import UserError
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.sweep.engine.choice import Choice, choose, sure
from losa_cache.sweep.engine.cross_validation import MOST_TRIALS, cross_validate
from losa_cache.sweep.engine.folds import count_folds
from losa_cache.sweep.report.findings import say_options
from losa_cache.tasks import Metric
from losa_cache.train.config import TrainConfig
from losa_cache.train.learned import named_sets, targets_of
from losa_cache.train.loop import Progress, Report
from losa_cache.train.placement import Placement
from losa_cache.train.run import require_place
from losa_cache.train.sampler import first_by_hash
from losa_cache.train.selection import Selection, select
from losa_cache.train.train import TrainResult, train
from losa_cache.train.training_data import from_cache, selected

Grid = Mapping[str, Sequence[Any]]
"""Values by field of :class:`TrainConfig`."""
RATES = (0.3, 1, 3)
"""Learning rates that are searched, as multiples of the side network's default."""
DECAYS = (1e-4, 1e-2, 1e-1)
"""Weight decays that are searched."""
SHARE = 0.2
"""Of the samples, held out by each split: a fifth."""
READ = {"side", "layers", "start", "sampling", "limit", "val_fraction", "val_ids", "group_by"}
"""Fields that decide what is read, which is the same for all settings."""
FILE = "auto.json"

Told = Callable[[str], None]


@dataclass(frozen=True)
class Tried:
    """One setting of a search, validated on all held-out samples.

    Attributes:
        options: the fields that were searched.
        value: selection metric on all held-out samples; ``None`` if its loss stopped being a number, so that it cannot
            be chosen.
        loss: loss of the task on the same samples.
    """

    options: dict[str, Any]
    value: float | None
    loss: float | None


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        tried: every setting; the choice names them by their position.
        choice: the chosen setting, and how sure the choice is.
        folds: number of splits in which each setting was trained.
        trained_on: mean number of training samples of a split.
        seconds: duration of the search.
        metric: the selection metric.
    """

    tried: list[Tried]
    choice: Choice
    folds: int
    trained_on: int
    seconds: float
    metric: Metric

    @property
    def options(self) -> dict[str, Any]:
        """The options of the chosen setting."""
        return self.tried[self.choice.chosen].options

    @property
    def sure(self) -> str:
        """Say what decided, and how sure the choice is."""
        return sure(self.choice, self.metric)

    @property
    def protocol(self) -> str:
        """Say on which samples the settings were validated."""
        splits = "one split" if self.folds == 1 else f"each of {self.folds} splits, which hold out different images"
        return (
            f"{len(self.tried)} settings were trained on about {self.trained_on} images of {splits}, and judged after "
            f"the last epoch by {self.choice.images} held-out images in all. No test set was read."
        )

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON."""
        return {
            "chosen": self.options,
            "sure": self.sure,
            "protocol": self.protocol,
            "settings": [
                {"options": setting.options, self.metric.name: setting.value, "loss": setting.loss}
                for setting in self.tried
            ],
            "choice": self.choice.to_json(self.metric),
            "folds": self.folds,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class AutoResult:
    """The result of ``train_auto``.

    Attributes:
        found: result of the search.
        trained: result of the training with the chosen options, on all samples.
    """

    found: Found
    trained: TrainResult


def grid_of(config: TrainConfig) -> Grid:
    """Give the grid for a side network: learning rates around its default, and weight decays."""
    return {"lr": [float(f"{config.spec.lr * factor:.6g}") for factor in RATES], "weight_decay": DECAYS}


def train_auto(
    cache: str | Location | ActivationCache | None = None,
    *,
    config: TrainConfig | None = None,
    grid: Grid | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    residency: str = "auto",
    stage: str | Path | None = None,
    report: Report = lambda metrics: None,
    progress: Progress = lambda epochs: None,
    staging: Progress = lambda share: None,
    searching: Progress = lambda share: None,
    told: Told = lambda sentence: None,
    **options: Any,
) -> AutoResult:
    """Choose options on held-out samples, then train with them on all samples; ``auto.json`` in the run describes the
    choice.

    Args:
        cache: an opened cache, its path or its URL; by default the most recent complete cache that is not of a held-out
            split.
        config: every other option. ``val_fraction`` is the share that each split holds out, by default a fifth. The
            number of splits is such that 500 samples are held out in all, if there are so many. With ``val_ids`` there
            is one split.
        grid: lists of values by field of :class:`TrainConfig`; by default that of :func:`grid_of`.
        out, device, residency, stage: as in ``losa_cache.train``.
        report, progress, staging: as in ``losa_cache.train``, for the training at the end.
        searching: is called with the finished share of the search.
        told: is called with sentences: one before the search, and one on the choice.
        options: fields of :class:`TrainConfig` that override those of ``config``.

    Raises:
        UserError: for options, a cache or a directory that cannot work, and if no choice is possible.
        KeyboardInterrupt: at Ctrl-C; an interrupted search stores nothing.
    """
    config = replace(config or TrainConfig(val_fraction=SHARE), **options)
    require_place(out)
    placement = Placement.choose(device, residency)
    cache = latest_training_cache(all_tokens=(config or TrainConfig()).reads_all_tokens) if cache is None else cache
    cache = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    near = cache if stage is None else stage_cache(cache, stage, progress=staging)
    result = search(near, config, grid, placement=placement, progress=searching, told=told)
    told(f"chosen: {say_options(result.options)}. {result.sure}")
    trained = train(
        cache,
        config=replace(config, **result.options, val_fraction=0.0, val_ids=None),
        out=out,
        device=device,
        residency=residency,
        stage=stage,
        report=report,
        progress=progress,
        staging=staging,
        beside={FILE: json.dumps(result.to_json(), indent=2).encode()},
    )
    return AutoResult(result, trained)


def search(
    cache: ActivationCache,
    config: TrainConfig,
    grid: Grid | None = None,
    *,
    placement: Placement,
    progress: Progress = lambda share: None,
    told: Told = lambda sentence: None,
) -> Found:
    """Train every combination of a grid on each split, and choose one (arguments as in :func:`train_auto`).

    Raises:
        UserError: for options that cannot work, and if no choice is possible.
    """
    started = perf_counter()
    searched = grid_of(config) if grid is None else grid
    if wrong := searched.keys() & READ:
        raise UserError(f"--auto cannot search {min(wrong)}: all of its settings read the same.")
    options = _combinations(searched)
    settings = [replace(config, **own) for own in options]
    if len(settings) < 2:
        raise UserError("--auto has nothing to choose between: leave out an option that it searches (--lr or another).")
    splits = split(cache, config)
    judges = np.concatenate([own.held_out for own in splits])
    task, targets = config.learns, targets_of(cache, config)
    remedy = "hold out more with --val-fraction or --val-ids, or train without --auto"
    task.require_choosable(targets.values[judges], targets.names, remedy)
    keep_freed_memory()
    whole = config if config.val_ids is not None else replace(config, val_fraction=0.0)
    trials = len(settings) * len(splits)
    times = f" in {len(splits)} splits each" if len(splits) > 1 else ""
    with ExitStack() as stack:
        data = from_cache(cache, whole, placement, passes=trials * config.epochs, trials=min(trials, MOST_TRIALS))
        stack.enter_context(data)
        told(f"searching {len(settings)} settings{times}: nothing is kept until the search is over.")
        results = cross_validate(data, settings, splits, progress)
    choice = choose([own for own in results if isfinite(own.value)], len(judges), task.selection)
    if choice is None:
        raise UserError("the loss of every setting that --auto tried stopped being a number: raise --precision.")
    tried = [
        Tried(own, result.value if isfinite(result.value) else None, result.loss)
        for own, result in zip(options, results, strict=True)
    ]
    mean = round(sum(len(own.train) for own in splits) / len(splits))
    return Found(tried, choice, len(splits), mean, perf_counter() - started, task.selection)


def split(cache: ActivationCache, config: TrainConfig) -> list[Selection]:
    """Split the samples of a cache: once by ``val_ids``, otherwise by the hash of their ids as often as necessary.

    Raises:
        UserError: for options that leave a part empty, or name unknown samples.
    """
    ids, targets = cache.sample_ids, targets_of(cache, config)
    if config.val_ids is not None:
        return [selected(cache, config, targets)]
    if not config.val_fraction:
        raise UserError("nothing is held out to choose by: set --val-fraction or --val-ids, or leave out --auto.")
    samples = first_by_hash(cache.samples, ids, config.limit)
    unlimited = replace(config, limit=None)
    folds = count_folds(len(samples), config.val_fraction)
    named = named_sets(cache, config)
    splits = [select(samples, ids, targets, unlimited, **named, fold=fold) for fold in range(folds)]
    return [own for own in splits if len(own.held_out)]  # there may be fewer groups than splits


def _combinations(grid: Grid) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{}]
    for name, values in grid.items():
        found = [own | {name: value} for own in found for value in values]
    return found
