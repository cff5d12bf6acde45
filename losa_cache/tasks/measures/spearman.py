"""Rank correlation."""

from torch import Tensor

from losa_cache.tasks.measures.ordering import Ordering
from losa_cache.tasks.measures.totals import counted, undefined


def column_spearman(predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give Spearman's correlation of each column, -1 ... 1, ``(M, C)``.

    It is Pearson's correlation of the ranks, where equal values share the mean of their ranks (Spearman, 1904). It is
    NaN if all predictions or all targets of a column are equal.

    Args:
        predictions: ``(K, N, C)``.
        targets: ``(N, C)``.
        weights: as in :mod:`losa_cache.tasks.measures`.
    """
    each = counted(weights, predictions)[:, None]
    ours, theirs = (_ranks(values, each) for values in (predictions.transpose(1, 2), targets.T[None]))
    ours, theirs = (
        ranks - (each * ranks).sum(-1, keepdim=True) / each.sum(-1, keepdim=True) for ranks in (ours, theirs)
    )
    spread = ((each * ours.square()).sum(-1) * (each * theirs.square()).sum(-1)).sqrt()
    together = (each * ours * theirs).sum(-1)
    return undefined(together / spread.masked_fill(spread < 1e-9, float("nan")), predictions)


def spearman(predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the mean of Spearman's correlation over the columns that have one, ``(M,)``; arguments as above."""
    return column_spearman(predictions, targets, weights).nanmean(-1)


def _ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Rank values ``(..., N)``, less one half; equal ones get the mean of their ranks."""
    order = Ordering.of(values)
    ordered = order.sort(weights)
    ranks = (order.before(ordered) + order.through(ordered)) / 2
    return ranks.scatter(-1, order.places.expand_as(ranks), ranks)
