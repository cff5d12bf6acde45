"""Choice of C on held-out samples: by accuracy, then by loss, then by the stronger regularisation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from losa_cache.probe.logistic import PATH, Fit, Rotation, fit_path, follow_path, rotated, standardise

FOLDS = 5
ROUGHLY = 1e-4
"""Tolerance during the search for C: scikit-learn's default. The fit at the chosen C continues to the optimum."""
PATIENCE = 4
"""Values of C, a decade, over which the held-out loss rises and the accuracy does not, at which a path ends."""


@dataclass(frozen=True, eq=False)
class Folds:
    """Pairs of a part that is fitted and a part that is held out, as places among the samples.

    Attributes:
        parts: the pairs, each int64.
        told: what they are, in words.
    """

    parts: list[tuple[Tensor, Tensor]]
    told: str


def held_out_fold(train: int, held_out: int) -> Folds:
    """Give one pair: so many training samples, followed by the held-out ones."""
    places = torch.arange(train + held_out)
    return Folds([(places[:train], places[train:])], f"{held_out} held-out images")


def cross_validation(
    labels: NDArray[np.int64], *, seed: int, folds: int = FOLDS, groups: NDArray[np.int64] | None = None
) -> Folds:
    """Divide all samples into folds at random, by the seed; the samples of each class are spread evenly, to one
    sample.

    Args:
        labels: class of each sample.
        seed: of the order.
        folds: how many, if there are so many samples.
        groups: group of each sample: all of a group are in one fold, and classes are spread as evenly as that allows;
            one group cannot be divided, so its samples are.
    """
    if groups is not None and len(np.unique(groups)) > 1:
        dealt = _dealt_by_group(labels, groups, seed=seed, folds=folds)
    else:
        count, rng = min(folds, len(labels)), np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        dealt = np.empty(len(labels), np.int64)
        dealt[order] = np.arange(len(labels)) % count
    count = int(dealt.max()) + 1
    pairs = [(np.flatnonzero(dealt != fold), np.flatnonzero(dealt == fold)) for fold in range(count)]
    return Folds(
        [(torch.from_numpy(ours), torch.from_numpy(theirs)) for ours, theirs in pairs],
        f"cross-validation over {count} folds of all {len(labels)} training images",
    )


def _dealt_by_group(
    labels: NDArray[np.int64], groups: NDArray[np.int64], *, seed: int, folds: int
) -> NDArray[np.int64]:
    """Give the fold of each sample: the largest groups first, each to the fold that has the fewest of its classes."""
    names, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    own = np.zeros((len(names), int(labels.max()) + 1), np.int64)
    np.add.at(own, (which, labels), 1)
    there = np.zeros((min(folds, len(names)), own.shape[1]), np.int64)
    fold_of = np.empty(len(names), np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold = min(range(len(there)), key=lambda place: (int(there[place] @ own[group]), int(there[place].sum())))
        fold_of[group] = fold
        there[fold] += own[group]
    return fold_of[which]


@dataclass(frozen=True, eq=False)
class Tuned:
    """A logistic regression at its chosen C, fitted to all samples.

    Attributes:
        fit: on the features as they are: their standardisation is folded in.
        c: chosen, as scikit-learn's.
        top1, loss: held out, in percent and in nats.
        path: C, top-1 and loss of every value that was tried.
    """

    fit: Fit
    c: float
    top1: float
    loss: float
    path: list[tuple[float, float, float]]


def tune(x: Tensor, y: Tensor, classes: int, folds: Folds, device: torch.device, cs: Sequence[float] = PATH) -> Tuned:
    """Choose C and fit all samples at it.

    Args:
        x: features ``(N, F)`` of any floating dtype.
        y: int64 ``(N,)``.
        classes: how many.
        folds: what is held out.
        device: where to compute, in float64.
        cs: values of C; those past the best are left out where the held-out loss keeps rising.
    """
    path = judged(x, y, classes, folds, device, sorted(cs))
    c, top1, loss = best_of(path)
    return Tuned(fit_at(c, x, y, classes, device), c, top1, loss, path)


def best_of(path: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Choose by top-1, then by loss, then the smaller C."""
    return min(path, key=lambda tried: (-tried[1], tried[2], tried[0]))


def fit_at(c: float, x: Tensor, y: Tensor, classes: int, device: torch.device) -> Fit:
    """Fit samples at one C; their standardisation is folded in."""
    z, standardisation = standardise(x.to(device))
    (fit,) = fit_path(z, y, classes, [c])
    return standardisation.folded(fit)


def judged(
    x: Tensor, y: Tensor, classes: int, folds: Folds, device: torch.device, cs: Sequence[float]
) -> list[tuple[float, float, float]]:
    """Follow the paths of all folds together (arguments as in :func:`tune`, ``cs`` ascending).

    Returns:
        C, held-out top-1 in percent and held-out loss in nats, of every value up to where the path ends.
    """
    return [figures for figures, _ in follow(parts_of(x, y, folds, device), classes, cs)]


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


def parts_of(x: Tensor, y: Tensor, folds: Folds, device: torch.device) -> list[Part]:
    """Standardise and rotate each fold (arguments as in :func:`tune`)."""
    parts = []
    for ours, theirs in folds.parts:
        z, standardisation = standardise(x[ours].to(device))
        held = standardisation(x[theirs].to(device))
        parts.append(Part(rotated(z), y[ours].to(device), held, y[theirs].to(device)))
    return parts


def follow(
    parts: Sequence[Part], classes: int, cs: Sequence[float]
) -> Iterator[tuple[tuple[float, float, float], Tensor]]:
    """Follow the paths of all folds together, up to where they end (``cs`` ascending).

    Yields:
        C, held-out top-1 in percent and held-out loss in nats; and the logits of what is held out, ``(N, classes)``.
    """
    truth = torch.cat([part.truth for part in parts])
    paths = [follow_path(part.rotation, part.fitted, classes, cs, tolerance=ROUGHLY) for part in parts]
    tried: list[tuple[float, float, float]] = []
    for c, fits in zip(cs, zip(*paths, strict=True), strict=True):
        logits = torch.cat([fit(part.held) for fit, part in zip(fits, parts, strict=True)])
        hits = float((logits.argmax(1) == truth).double().mean())
        tried.append((c, 100 * hits, float(F.cross_entropy(logits, truth))))
        yield tried[-1], logits
        if _over(tried):
            break


def _over(tried: Sequence[tuple[float, float, float]]) -> bool:
    before, late = tried[:-PATIENCE], tried[-PATIENCE - 1 :]
    if not before:
        return False
    rising = all(later[2] > earlier[2] for earlier, later in pairwise(late))
    return rising and max(top1 for _, top1, _ in late[1:]) <= max(top1 for _, top1, _ in before)
