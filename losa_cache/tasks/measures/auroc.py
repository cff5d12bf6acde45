"""Area under the receiver operating characteristic."""

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
    each = counted(weights, scores)
    positives, negatives = order.sort(each * positive), order.sort(each * ~positive)
    below, through = order.before_and_through(negatives)
    pairs = positives.sum(-1) * negatives.sum(-1)
    return undefined((positives * (below + through)).sum(-1) / (2 * pairs), scores)


def two_class_auroc(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the AUROC of the second class, of log-probabilities ``(K, N, 2)`` and labels 0 or 1, ``(N,)``."""
    return auroc(log_probabilities[..., 1] - log_probabilities[..., 0], labels == 1, weights)
