"""How far stated probabilities are from observed shares."""

from dataclasses import dataclass

from torch import Tensor

from losa_cache.tasks.measures.totals import counted, undefined

BINS = 15
"""Equally wide bins, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""


@dataclass(frozen=True)
class Bins:
    """What lies in each bin of stated probabilities, float64 ``(M, bins)``: sums over its samples.

    Attributes:
        samples: their number.
        stated: the probabilities.
        observed: those for which it is true.
    """

    samples: Tensor
    stated: Tensor
    observed: Tensor

    @classmethod
    def of(cls, stated: Tensor, observed: Tensor, weights: Tensor | None = None, *, bins: int = BINS) -> "Bins":
        """Sort probabilities ``(K, N)``, and whether each is true, ``(K, N)`` or ``(N,)``, into bins (low, high]."""
        each = counted(weights, stated)
        each = each.expand(max(len(each), len(stated)), -1)
        place = ((stated.double() * bins).ceil().long() - 1).clamp(0, bins - 1).expand_as(each)
        none = each.new_zeros((len(each), bins))
        return cls(*(none.scatter_add(1, place, each * values) for values in (1, stated.double(), observed)))


def calibration_error(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the expected calibration error of the predicted class, 0 ... 1, ``(M,)``: Guo et al., equation 3.

    Args:
        log_probabilities: ``(K, N, C)``.
        labels: int64 ``(N,)``.
        weights: as in :mod:`losa_cache.tasks.measures`.
    """
    likeliest = log_probabilities.max(-1)
    bins = Bins.of(likeliest.values.double().exp().nan_to_num(0), likeliest.indices == labels, weights)
    gaps = (bins.observed - bins.stated).abs().sum(-1)
    return undefined(gaps / bins.samples.sum(-1), log_probabilities)
