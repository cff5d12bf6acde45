"""The baseline of a sweep: the tuned probe of its cache, on the training and held-out samples of the trials.

*Not from the paper.* If few samples are held out, neither C nor the rows are chosen on them: the best of a hundred
figures on so few samples is too high (on 80 to 120 samples of three data sets by 0 to 5 points, 2 in the mean). Then
both are chosen by cross-validation over the training samples, as C is in a run (:mod:`losa_cache.train.all_layers`).
"""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.files import unsealed, write_sealed
from losa_cache.outside import UnreadableError, fit, read_file
from losa_cache.probe.features import Features, read_features
from losa_cache.probe.folds import Folds, cross_validation, held_out_fold
from losa_cache.probe.images import require_classes, share_that_fits
from losa_cache.probe.logistic import PATH, Fit
from losa_cache.probe.tuning import REGRESSIONS, Standardised, Tried, choose, order, parts_of, top1
from losa_cache.sweep.engine.record import ProbeLine, ToBeat
from losa_cache.tasks import Metric, Task
from losa_cache.tasks.base import ENOUGH
from losa_cache.train.all_layers import FOLDS, MOST_FOLDED
from losa_cache.train.config import TrainConfig
from losa_cache.train.learned import targets_of
from losa_cache.train.placement import Placement

log = logging.getLogger(__name__)

FILE = "probe.json"
LAST, ALL = "last layer", "all layers"

Part = tuple[ActivationCache, NDArray[np.int64]]
"""A cache and numbers of its samples."""


def lines_to_beat(
    path: Path,
    train: Part,
    held_out: Part,
    device: torch.device,
    *,
    config: TrainConfig,
    groups: NDArray[np.int64] | None = None,
    test: ActivationCache | None = None,
) -> ToBeat:
    """Fit the probe of the last layer and that of all layers, or read them from a file.

    Args:
        path: file in which they are stored after the fit.
        train: training samples of the trials.
        held_out: held-out samples of the trials.
        device: device that computes.
        config: options of the trials: they say which classes are learned, and by which metric trials are chosen. Probes
            that were stored without that metric are fitted again.
        groups: group of each training sample, which cross-validation leaves whole; ``None``: there are none.
        test: a cache to test on, after a fit to the samples of both. Probes that were stored without a test are fitted
            again.

    Returns:
        the probes; or none, and the reason, if no probe can be fitted.

    Raises:
        OSError: if the file cannot be written.
    """
    kept, task = _kept(path), config.learns
    if kept is not None and all(_complete(line, task.selection, tested=test is not None) for line in kept.lines):
        return kept
    log.info("fitting the probe of the last layer and of all layers, the line to beat.")
    try:
        found = _fitted(train, held_out, device, config, groups, test)
    except UserError as error:
        return ToBeat([], f"There is no probe to beat: {error}")
    write_sealed(path, asdict(found))
    return found


def _complete(line: ProbeLine, metric: Metric, *, tested: bool) -> bool:
    return line.held_out(metric) is not None and not (tested and line.test_top1 is None)


def _kept(path: Path) -> ToBeat | None:
    """Read what was kept; ``None``: nothing, or it was altered, and is fitted again."""
    try:
        return fit(unsealed(read_file(path), "it"), ToBeat)
    except (UnreadableError, ValueError):
        return None


def _fitted(
    train: Part,
    held_out: Part,
    device: torch.device,
    config: TrainConfig,
    groups: NDArray[np.int64] | None,
    test: ActivationCache | None,
) -> ToBeat:
    cache, samples = train
    known, task = targets_of(cache, config), config.learns
    count, judges, tested = len(samples), len(held_out[1]), 0 if test is None else len(test.samples)
    if count > MOST_FOLDED:
        raise UserError(
            f"{count:,} training samples are more than {MOST_FOLDED:,}, which would take longer than the trials: "
            "losa-cache probe fits them."
        )
    require_classes(known.values[samples], known.names)
    if share_that_fits(cache, count + judges, tested, FOLDS, device) < 1:
        raise UserError(
            "memory does not hold the pooled rows of all samples; losa-cache probe takes as many as it holds."
        )
    placement = Placement(device)  # what is read once is not kept

    def read(cache: ActivationCache, samples: NDArray[np.int64]) -> Features:
        return read_features(cache, samples, placement, labels=targets_of(cache, config, known.names).values)

    ours, theirs, tests = read(*train), read(*held_out), None if test is None else read(test, test.samples)
    features, classes = _both(ours, theirs), len(known.names)
    folds = held_out_fold(count, judges)
    if judges < ENOUGH:
        folds = cross_validation(features.labels[:count].numpy(), seed=0, folds=FOLDS, groups=groups)
    lines = [_line(reads, features, count, folds, tests, classes, task, device) for reads in (LAST, ALL)]
    by = "these" if judges >= ENOUGH else f"cross-validation over the {count:,} in {FOLDS} folds"
    told = (
        f"The probes are regressions on pooled rows, fitted to the trials' {count:,} training samples and judged by "
        f"the same {judges:,} samples; logistic or ridge, its strength and the rows (cls, mean or both) were chosen by "
        f"{by}."
    )
    if test is not None:
        told += f" For the test they were fitted again, with that strength, to all {count + judges:,}."
    return ToBeat(lines, told)


def _line(
    reads: str,
    features: Features,
    count: int,
    folds: Folds,
    tests: Features | None,
    classes: int,
    task: Task,
    device: torch.device,
) -> ProbeLine:
    """Choose a regression and the rows, and judge on what lies behind the first samples."""
    y = features.labels

    def tried(kind: str) -> dict[tuple[str, str], Tried]:  # its parts are as large as those of the next kind
        parts = parts_of(_rows(features, reads, kind), y, folds, device)
        return {(method, kind): choose(method, parts, classes, PATH) for method in REGRESSIONS}

    every = {own: found for kind in features.kinds for own, found in tried(kind).items()}
    method, rows = min(every, key=lambda own: order(every[own]))
    best, x = every[method, rows], _rows(features, reads, rows)

    def fitted(count: int) -> Fit:
        return Standardised(x[:count], y[:count], classes, device).fit(method, best.c, best.scale)

    logits = _logits(fitted(count), x[count:], device)
    line, metric = ProbeLine(reads, rows, best.c, top1(logits, y[count:]), method=method), task.selection
    if line.held_out(metric) is None:
        line = replace(line, others={metric.name: task.selected_figure(task.predictions(logits[None]), y[count:])})
    if tests is None:
        return line
    tested = _logits(fitted(len(x)), _rows(tests, reads, rows), device)
    return replace(line, test_top1=top1(tested, tests.labels))


def _rows(features: Features, reads: str, kind: str) -> Tensor:
    return features.of(None if reads == ALL else features.points[-1], kind)


def _logits(found: Fit, x: Tensor, device: torch.device) -> Tensor:
    return torch.cat([found(part.to(device)).cpu() for part in x.split(4096)])


def _both(ours: Features, theirs: Features) -> Features:
    rows, tail, labels = (
        torch.cat([getattr(ours, name), getattr(theirs, name)]) for name in ("rows", "tail", "labels")
    )
    return replace(ours, rows=rows, tail=tail, labels=labels, ids=ours.ids + theirs.ids)
