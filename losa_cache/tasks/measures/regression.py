"""Errors of numbers, column by column, and their means over columns."""

from dataclasses import dataclass

from torch import Tensor

from losa_cache.tasks.measures.totals import counted, totals


@dataclass(frozen=True)
class ColumnErrors:
    """Errors of each column, float64 ``(M, C)``.

    Attributes:
        r2: coefficient of determination, 1 - sum of squared errors / sum of squared deviations from the mean of these
            targets; at most 1. NaN where all targets of a column are equal.
        mae: mean absolute error, in the unit of the targets.
        rmse: root of the mean squared error, in the unit of the targets.
    """

    r2: Tensor
    mae: Tensor
    rmse: Tensor

    @classmethod
    def of(cls, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> "ColumnErrors":
        """Measure predictions ``(K, N, C)`` against targets ``(N, C)``; weights as in ``losa_cache.tasks.measures``."""
        samples = counted(weights, predictions).sum(1, keepdim=True)
        errors, centred = predictions.double() - targets, targets.double() - targets.double().mean(0)
        squared = totals(errors.square(), weights)
        # centred on all samples, so that little is lost where a draw is centred on its own
        spread = totals(centred.square()[None], weights) - totals(centred[None], weights).square() / samples
        r2 = 1 - squared / spread.masked_fill(spread <= 0, float("nan"))
        return cls(r2, totals(errors.abs(), weights) / samples, (squared / samples).sqrt())


def r2(predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the mean coefficient of determination of the columns that have one, ``(M,)``; as :class:`ColumnErrors`."""
    return ColumnErrors.of(predictions, targets, weights).r2.nanmean(-1)


def mean_absolute_error(predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the mean absolute error, averaged over columns, ``(M,)``; arguments as of :class:`ColumnErrors`."""
    return ColumnErrors.of(predictions, targets, weights).mae.mean(-1)


def root_mean_squared_error(predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the root mean squared error, averaged over columns, ``(M,)``; arguments as of :class:`ColumnErrors`."""
    return ColumnErrors.of(predictions, targets, weights).rmse.mean(-1)
