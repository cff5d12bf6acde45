"""A logistic and a ridge regression on class numbers, each tuned on held-out samples by accuracy, then by loss, then by
the stronger regularisation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.probe.folds import Folds
from losa_cache.probe.logistic import Fit, Rotation, follow_path, rotated, standardise
from losa_cache.probe.record import LOGISTIC, RIDGE
from losa_cache.probe.ridge import fit_rotated

ROUGHLY = 1e-4
"""Tolerance of logistic regressions during the search: scikit-learn's default. The fit at the chosen C continues to the
optimum."""
PATIENCE = 4
"""Values of C, a decade, over which the held-out loss rises and the accuracy does not, at which a path ends."""
SCALES = tuple(10 ** (tenth / 10) for tenth in range(-10, 26))
"""0.1 ... 316: factors that turn the predictions of a ridge regression, 0 or 1 for every class, into logits."""


class Tried(NamedTuple):
    """A regularisation, and what it came to on held-out samples.

    Attributes:
        c: C of a logistic regression as scikit-learn's, 1 / alpha of a ridge regression, for features of standard
            deviation 1.
        scale: what outputs are multiplied by, so that they are logits.
        top1: in percent.
        loss: cross entropy, in nats.
    """

    c: float
    scale: float
    top1: float
    loss: float


@dataclass(frozen=True, eq=False)
class Part:
    """What a fold fits and what it holds out, standardised by what it fits, in float64.

    Attributes:
        rotation: of the features that are fitted.
        fitted: their classes, int64.
        held: features that are held out.
        truth: their classes, int64.
    """

    rotation: Rotation
    fitted: Tensor
    held: Tensor
    truth: Tensor


Follow = Callable[[Sequence[Part], int, Sequence[float]], Iterator[tuple[Tried, Tensor]]]


class Regression(NamedTuple):
    """A kind of regression.

    Attributes:
        follow: fits every part at every C, in ascending order, up to where the path ends: what was tried, and the
            logits of what is held out, ``(N, classes)``.
        fit: fits rotated features with their classes at one C, to the optimum.
    """

    follow: Follow
    fit: Callable[[Rotation, Tensor, int, float], Fit]


@dataclass(frozen=True, eq=False)
class Tuned:
    """A regression at its chosen regularisation, fitted to all samples.

    Attributes:
        fit: gives logits of the features as they are: standardisation and scale are folded in.
        chosen: its regularisation, and what it came to on held-out samples.
        seconds: of choosing and fitting; what the regressions share counts in each.
    """

    fit: Fit
    chosen: Tried
    seconds: float


def tune(
    x: Tensor, y: Tensor, classes: int, folds: Folds, device: torch.device, cs: Sequence[float]
) -> dict[str, Tuned]:
    """Choose the regularisation of each of :data:`REGRESSIONS`, and fit all samples at it.

    Args:
        x: features ``(N, F)`` of any floating dtype.
        y: int64 ``(N,)``.
        classes: how many.
        folds: what is held out.
        device: where to compute, in float64.
        cs: values of C; those past the best are left out where the held-out loss keeps rising.
    """
    started = perf_counter()
    parts = parts_of(x, y, folds, device)
    shared = perf_counter() - started
    chosen, seconds = {}, {}
    for name in REGRESSIONS:
        started = perf_counter()
        chosen[name] = choose(name, parts, classes, cs)
        seconds[name] = perf_counter() - started
    del parts  # as large as what follows
    started = perf_counter()
    rows = Standardised(x, y, classes, device)
    shared += perf_counter() - started
    tuned = {}
    for name, own in chosen.items():
        started = perf_counter()
        fit = rows.fit(name, own.c, own.scale)
        tuned[name] = Tuned(fit, own, shared + seconds[name] + perf_counter() - started)
    return tuned


def choose(name: str, parts: Sequence[Part], classes: int, cs: Sequence[float]) -> Tried:
    """Choose by top-1, then by loss, then the smaller C."""
    tried = [tried for tried, _ in REGRESSIONS[name].follow(parts, classes, sorted(cs))]
    return min(tried, key=order)


def order(tried: Tried) -> tuple[float, float, float]:
    """Sort the best first."""
    return -tried.top1, tried.loss, tried.c


class Standardised:
    """Samples that are standardised and rotated once, for fits of several kinds (arguments as in :func:`tune`)."""

    def __init__(self, x: Tensor, y: Tensor, classes: int, device: torch.device) -> None:
        z, self._standardisation = standardise(x.to(device))
        self._rotation, self._y, self._classes = rotated(z), y.to(device), classes

    def fit(self, name: str, c: float, scale: float = 1.0) -> Fit:
        """Fit a regression of that name; its outputs are multiplied by the scale, its standardisation is folded in."""
        weight, bias = REGRESSIONS[name].fit(self._rotation, self._y, self._classes, c)
        return self._standardisation.folded(Fit(scale * weight, scale * bias))


def parts_of(x: Tensor, y: Tensor, folds: Folds, device: torch.device) -> list[Part]:
    """Standardise and rotate each fold (arguments as in :func:`tune`)."""
    parts = []
    for ours, theirs in folds.parts:
        z, standardisation = standardise(x[ours].to(device))
        held = standardisation(x[theirs].to(device))
        parts.append(Part(rotated(z), y[ours].to(device), held, y[theirs].to(device)))
    return parts


def truth_of(parts: Sequence[Part]) -> Tensor:
    """Give the classes of what is held out, in the order of its logits."""
    return torch.cat([part.truth for part in parts])


def _follow_logistic(parts: Sequence[Part], classes: int, cs: Sequence[float]) -> Iterator[tuple[Tried, Tensor]]:
    truth = truth_of(parts)
    paths = [follow_path(part.rotation, part.fitted, classes, cs, tolerance=ROUGHLY) for part in parts]
    tried: list[Tried] = []
    for c, fits in zip(cs, zip(*paths, strict=True), strict=True):
        logits = torch.cat([fit(part.held) for fit, part in zip(fits, parts, strict=True)])
        tried.append(Tried(c, 1.0, top1(logits, truth), float(F.cross_entropy(logits, truth))))
        yield tried[-1], logits
        if _over(tried):
            break


def _over(tried: Sequence[Tried]) -> bool:
    before, late = tried[:-PATIENCE], tried[-PATIENCE - 1 :]
    if not before:
        return False
    rising = all(later.loss > earlier.loss for earlier, later in pairwise(late))
    return rising and max(one.top1 for one in late[1:]) <= max(one.top1 for one in before)


def _follow_ridge(parts: Sequence[Part], classes: int, cs: Sequence[float]) -> Iterator[tuple[Tried, Tensor]]:
    truth = truth_of(parts)
    held = [part.held @ part.rotation.axes.T for part in parts]
    paths = [fit_rotated(part.rotation, _columns(part.fitted, classes), cs) for part in parts]
    for c, fits in zip(cs, zip(*paths, strict=True), strict=True):
        predicted = torch.cat([fit(own) for fit, own in zip(fits, held, strict=True)])
        scale, loss = _scale(predicted, truth)
        yield Tried(c, scale, top1(predicted, truth), loss), scale * predicted


def _scale(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
    """Choose one of :data:`SCALES` by the cross entropy, which is convex in the scale; give both."""

    def loss(at: int) -> float:
        return float(F.cross_entropy(SCALES[at] * predicted, truth))

    least, most = 0, len(SCALES) - 1
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if loss(middle) <= loss(middle + 1) else (middle + 1, most)
    return SCALES[least], loss(least)


def top1(logits: Tensor, truth: Tensor) -> float:
    """Compute the share of samples whose class has the largest logit, in percent."""
    return 100 * float((logits.argmax(1) == truth).double().mean())


def _columns(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).double()


def _fit_logistic(rotation: Rotation, y: Tensor, classes: int, c: float) -> Fit:
    (fit,) = follow_path(rotation, y, classes, [c])
    return fit


def _fit_ridge(rotation: Rotation, y: Tensor, classes: int, c: float) -> Fit:
    (fit,) = fit_rotated(rotation, _columns(y, classes), [c])
    return rotation.undone(fit)


REGRESSIONS = {LOGISTIC: Regression(_follow_logistic, _fit_logistic), RIDGE: Regression(_follow_ridge, _fit_ridge)}
"""By their names."""
