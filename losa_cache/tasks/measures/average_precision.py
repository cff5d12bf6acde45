"""Average precision of each label, and its means."""

from torch import Tensor

from losa_cache.tasks.measures.ordering import Ordering
from losa_cache.tasks.measures.totals import counted, undefined


def average_precision(scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the average precision of each label, 0 ... 1, ``(M, C)``.

    It is the sum over the distinct scores, from the highest, of the precision there times the recall that is gained
    there, without interpolation. It is NaN for a label without a positive sample.

    Args:
        scores: ``(K, N, C)``.
        targets: ``(N, C)``: 1, 0, or -1 where it is not known: that is ignored.
        weights: as in :mod:`losa_cache.tasks.measures`.
    """
    by_label, truth = scores.transpose(1, 2), targets.T
    order = Ordering.of(by_label, descending=True)
    each, ordered = order.sort(counted(weights, scores)[:, None]), order.sort(truth[None])
    positives = each * (ordered == 1)
    right, called = order.through(positives), order.through(each * (ordered >= 0))
    gained = (positives * (right / called.clamp_min(1e-300))).sum(-1)
    return undefined(gained / positives.sum(-1), scores)


def mean_average_precision(scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the mean average precision of the labels with a positive sample (macro), ``(M,)``; arguments as above."""
    return average_precision(scores, targets, weights).nanmean(-1)


def micro_average_precision(scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the average precision of all pairs of sample and label together (micro), ``(M,)``; arguments as above."""
    labels = targets.shape[1]
    repeated = counted(weights, scores).repeat_interleave(labels, 1)
    return average_precision(scores.flatten(1)[..., None], targets.reshape(-1, 1), repeated)[:, 0]
