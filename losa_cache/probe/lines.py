"""Every probe of a set of features: tuned on held-out samples, fitted to all, tested."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.probe.features import Features
from losa_cache.probe.folds import Folds
from losa_cache.probe.logistic import PATH
from losa_cache.probe.neighbours import by_class_mean, choose_neighbours, judge_class_mean, vote
from losa_cache.probe.record import ALL, CLASS_MEAN, NEIGHBOURS, TAIL, Line
from losa_cache.probe.tuning import Tuned, tune
from losa_cache.tasks.measures.metric import standard_error


@dataclass(frozen=True, eq=False)
class Data:
    """The inputs that all probes share.

    Attributes:
        train: features of the images that are fitted.
        test: of the test images; ``None``: there are none.
        classes: how many.
        folds: what is held out of the first while something is chosen.
        device: where to compute.
    """

    train: Features
    test: Features | None
    classes: int
    folds: Folds
    device: torch.device


@dataclass(frozen=True, eq=False)
class Probed:
    """A line of the table, and its predictions.

    Attributes:
        line: its figures.
        tuned: the regression; ``None`` of the other methods.
        predicted: class of each test image, int64 ``(N,)``; ``None`` without a test.
    """

    line: Line
    tuned: Tuned | None
    predicted: Tensor | None


def probe_features(data: Data, progress: Callable[[float], None]) -> list[Probed]:
    """Compute all lines: regressions of each layer, of all and of the tail; then of two layers the other methods."""
    points, kinds = data.train.points, data.train.kinds
    regressions = [(reads, kind) for reads in (*points, ALL) for kind in kinds] + [(TAIL, "features")]
    total = 2 * len(regressions) + 4 * len(kinds)
    found: list[Probed] = []
    for reads, kind in regressions:
        found += _regressions(data, reads, kind)
        progress(len(found) / total)
    layers = [one for one in found if one.line.reads in points]
    best = min(layers, key=lambda one: (-one.line.held_out_top1, one.line.held_out_loss)).line.reads
    for reads in dict.fromkeys([points[-1], best]):
        for kind in kinds:
            found += [_neighbours(data, reads, kind), _class_mean(data, reads, kind)]
            progress(len(found) / total)
    return found


def _regressions(data: Data, reads: str, kind: str) -> list[Probed]:
    x = _read(data.train, reads, kind)
    tuned = tune(x, data.train.labels, data.classes, data.folds, data.device, PATH)
    queries = None if data.test is None else _read(data.test, reads, kind)
    return [_regression(data, name, own, reads, kind, queries) for name, own in tuned.items()]


def _regression(data: Data, name: str, tuned: Tuned, reads: str, kind: str, queries: Tensor | None) -> Probed:
    started = perf_counter()
    predicted = loss = None
    if data.test is not None and queries is not None:
        logits = torch.cat([tuned.fit(part.to(data.device)) for part in queries.split(4096)])
        predicted = logits.argmax(1).cpu()
        loss = float(F.cross_entropy(logits, data.test.labels.to(data.device)))
    top1, error = _tested(data, predicted)
    line = Line(
        method=name,
        reads=reads,
        rows=kind,
        features=tuned.fit.weight.shape[1],
        held_out_top1=tuned.chosen.top1,
        held_out_loss=tuned.chosen.loss,
        c=tuned.chosen.c,
        neighbours=None,
        test_top1=top1,
        test_error=error,
        test_loss=loss,
        seconds=tuned.seconds + perf_counter() - started,
    )
    return Probed(line, tuned, predicted)


def _neighbours(data: Data, reads: str, kind: str) -> Probed:
    started = perf_counter()
    x, y = _read(data.train, reads, kind).to(data.device), data.train.labels.to(data.device)
    count, held_out = choose_neighbours(x, y, data.classes, data.folds)
    predicted = None
    if data.test is not None:
        queries = _read(data.test, reads, kind).to(data.device)
        predicted = vote(x, y, queries, data.classes)[count].cpu()
    line = _plain_line(data, NEIGHBOURS, reads, kind, x.shape[1], held_out, predicted, count, started)
    return Probed(line, None, predicted)


def _class_mean(data: Data, reads: str, kind: str) -> Probed:
    started = perf_counter()
    x, y = _read(data.train, reads, kind).to(data.device), data.train.labels.to(data.device)
    held_out = judge_class_mean(x, y, data.classes, data.folds)
    predicted = None
    if data.test is not None:
        predicted = by_class_mean(x, y, _read(data.test, reads, kind).to(data.device), data.classes).cpu()
    line = _plain_line(data, CLASS_MEAN, reads, kind, x.shape[1], held_out, predicted, None, started)
    return Probed(line, None, predicted)


def _plain_line(
    data: Data,
    method: str,
    reads: str,
    kind: str,
    features: int,
    held_out: float,
    predicted: Tensor | None,
    neighbours: int | None,
    started: float,
) -> Line:
    """Give a line of a method without probabilities."""
    top1, error = _tested(data, predicted)
    return Line(
        method=method,
        reads=reads,
        rows=kind,
        features=features,
        held_out_top1=held_out,
        held_out_loss=None,
        c=None,
        neighbours=neighbours,
        test_top1=top1,
        test_error=error,
        test_loss=None,
        seconds=perf_counter() - started,
    )


def _read(features: Features, reads: str, kind: str) -> Tensor:
    if reads == TAIL:
        return features.tail
    return features.of(None if reads == ALL else reads, kind)


def _tested(data: Data, predicted: Tensor | None) -> tuple[float | None, float | None]:
    if predicted is None or data.test is None:
        return None, None
    top1 = 100 * float((predicted == data.test.labels).double().mean())
    return top1, standard_error(top1, len(predicted))
