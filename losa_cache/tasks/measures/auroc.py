"""Area under the receiver operating characteristic."""

import torch
from torch import Tensor

from losa_cache.tasks.measures.ordering import Ordering
from losa_cache.tasks.measures.totals import counted, undefined


def auroc(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the probability that a positive sample has a higher score than a negative one, 0 ... 1, ``(M,)``.

    Equal scores count half (Mann and Whitney, 1947). It is NaN if all samples are of one kind.

    Args:
        scores: ``(K, N)``.
        positive: bool ``(N,)``.
        weights: as in :mod:`losa_cache.tasks.measures`.
    """
    order = Ordering.of(scores)
    each, ordered = order.sort(counted(weights, scores)), order.sort(positive[None])
    positives, negatives = each * ordered, each * ~ordered
    below, through = order.before(negatives), order.through(negatives)
    pairs = positives.sum(-1) * negatives.sum(-1)
    return undefined((positives * (below + through)).sum(-1) / (2 * pairs), scores)


def two_class_auroc(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the AUROC of the second of two classes, ``(M,)``; NaN where there are more.

    Args:
        log_probabilities: ``(K, N, C)``.
        labels: int64 ``(N,)``.
        weights: as in :mod:`losa_cache.tasks.measures`.
    """
    if log_probabilities.shape[-1] != 2:
        trials = max(len(log_probabilities), 1 if weights is None else len(weights))
        return log_probabilities.new_full((trials,), torch.nan)
    return auroc(log_probabilities[..., 1] - log_probabilities[..., 0], labels == 1, weights)
