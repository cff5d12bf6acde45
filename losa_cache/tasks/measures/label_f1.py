"""F1 of each label at a threshold, and the threshold at which it is highest."""

import torch
from torch import Tensor

from losa_cache.tasks.measures.ordering import Ordering
from losa_cache.tasks.measures.totals import totals, undefined

MIDDLE = 0.5
"""Threshold of a label that no sample has: none is better than another."""


def label_f1(
    probabilities: Tensor, targets: Tensor, weights: Tensor | None = None, *, thresholds: Tensor | float = MIDDLE
) -> Tensor:
    """Give the F1 of each label, 0 ... 1, ``(M, C)``; NaN for a label that no sample has and that is never predicted.

    Args:
        probabilities: ``(K, N, C)``; a label is predicted where its probability is at least its threshold.
        targets: ``(N, C)``: 1, 0, or -1 where it is not known: that is ignored.
        weights: as in :mod:`losa_cache.tasks.measures`.
        thresholds: one, or one for each label, ``(C,)``.
    """
    called, positive = (probabilities >= thresholds) & (targets >= 0), targets == 1
    right, either = totals(called & positive, weights), totals(called.double() + positive, weights)
    return undefined(2 * right / either, probabilities)


def macro_label_f1(
    probabilities: Tensor, targets: Tensor, weights: Tensor | None = None, *, thresholds: Tensor | float = MIDDLE
) -> Tensor:
    """Give the mean F1 of the labels that are present or predicted, ``(M,)``; arguments as above."""
    return label_f1(probabilities, targets, weights, thresholds=thresholds).nanmean(-1)


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Give for each label the threshold with the highest F1 on these samples, float64 ``(C,)``.

    Of several it is the highest. It lies halfway between two neighbouring probabilities, or between the lowest and 0.

    Args:
        probabilities: ``(N, C)``.
        targets: ``(N, C)``, as above.
    """
    known = targets.T >= 0
    # what is not known goes behind everything that is, where it changes no F1
    order = Ordering.of(probabilities.T.double().where(known, -1.0)[None], descending=True)
    positives, known = order.sort(targets.T[None] == 1), order.sort(known[None])
    right, called = order.through(positives.double()), order.through(known.double())
    f1 = (2 * right / (called + positives.sum(-1, keepdim=True))).where(known, -1.0)
    best = f1.argmax(-1, keepdim=True)
    last = order.last.gather(-1, best)
    after = order.scores.gather(-1, (last + 1).clamp_max(len(targets) - 1)).where(last + 1 < len(targets), 0.0)
    lowest = order.scores.gather(-1, last)
    middle = (lowest + after.clamp_min(0)) / 2
    return torch.where(positives.any(-1), middle[..., 0], MIDDLE)[0]
