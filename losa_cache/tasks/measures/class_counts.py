"""How often each class is right, present and predicted, and what follows from that."""

from dataclasses import dataclass

import torch
from torch import Tensor

from losa_cache.tasks.measures.totals import counted


@dataclass(frozen=True)
class ClassCounts:
    """Counts of C classes, float64 ``(M, C)``.

    Attributes:
        right: samples of the class that were predicted to be of it.
        support: samples of the class.
        predicted: samples that were predicted to be of it.
    """

    right: Tensor
    support: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, decided: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None) -> "ClassCounts":
        """Count.

        Args:
            decided: predicted classes, int64 ``(K, N)``.
            labels: int64 ``(N,)``.
            classes: C, their number.
            weights: as in :mod:`losa_cache.tasks.measures`.
        """
        each = counted(weights, decided)
        each = each.expand(max(len(each), len(decided)), -1)
        none = each.new_zeros((len(each), classes))
        return cls(
            right=none.index_add(1, labels, each * (decided == labels)),
            support=none.index_add(1, labels, each),
            predicted=none.scatter_add(1, decided.expand_as(each), each),
        )

    @property
    def recall(self) -> Tensor:
        """Share of the class's samples that are right; NaN without any."""
        return self.right / self.support

    @property
    def precision(self) -> Tensor:
        """Share of the predictions of a class that are right; NaN without any."""
        return self.right / self.predicted

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of precision and recall; NaN for a class that is neither present nor predicted."""
        return 2 * self.right / (self.support + self.predicted)


def balanced_accuracy(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the mean recall of the classes that are present, 0 ... 1, ``(M,)``.

    Args:
        predictions: a score of each class, ``(K, N, C)``; the highest is predicted.
        labels: int64 ``(N,)``.
        weights: as in :mod:`losa_cache.tasks.measures`.
    """
    return ClassCounts.of(predictions.argmax(-1), labels, predictions.shape[-1], weights).recall.nanmean(-1)


def macro_f1(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the mean F1 of the classes that are present or predicted, 0 ... 1, ``(M,)``; arguments as above."""
    return ClassCounts.of(predictions.argmax(-1), labels, predictions.shape[-1], weights).f1.nanmean(-1)


def confusion(decided: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count samples by class (row) and predicted class (column), int64 ``(C, C)``; both arguments are ``(N,)``."""
    return torch.bincount(labels * classes + decided, minlength=classes**2).reshape(classes, classes)
