"""Depth: the distance of every pixel, learned as its logarithm. *Not from the paper*."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.target_set import DEPTH, TargetSet
from losa_cache.tasks.base import Vector
from losa_cache.tasks.measures.metric import Metric
from losa_cache.tasks.measures.sizes import SIZE, size_of
from losa_cache.tasks.measures.standardised import DEVIATION, MEAN, Standardised

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from losa_cache.report.details import Details
    from losa_cache.report.outcome import Outcome
    from losa_cache.train.config import TrainConfig

NEAR = 1.25
"""Largest ratio of two depths that count as near each other in delta 1."""


def _mean_known(each: "Tensor", depths: "Tensor") -> "Tensor":
    """Average over the pixels that were measured, ``(B, H, W)`` to ``(B,)``; 0 where there are none."""
    known = ~depths.isnan()
    return each.where(known, 0).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def _log_error(logarithms: "Tensor", depths: "Tensor") -> "Tensor":
    """Give the mean absolute difference of the logarithms, of outputs ``(B, 1, H, W)``."""
    return _mean_known((logarithms[:, 0] - depths.log()).abs(), depths)


def _terms(logarithms: "Tensor", depths: "Tensor") -> "Tensor":
    """Give the terms of all metrics, ``(K, samples, 5)``, in float64: the loss; over the pixels that were measured the
    sums of squared errors, of relative errors, and of pixels that are near; and how many were measured.
    """
    from torch import stack

    from losa_cache.tasks.measures.maps import judged

    def judge(large: "Tensor", truth: "Tensor") -> "Tensor":
        known, predicted = ~truth.isnan(), large[:, 0].double().exp()
        wanted = truth.double()
        error, ratio = predicted - wanted, predicted / wanted
        near = (ratio < NEAR) & (ratio > 1 / NEAR)
        sums = [error.square(), error.abs() / wanted, near.double(), known.double()]
        totals = [each.where(known, 0).flatten(1).sum(1) for each in sums]
        return stack([_log_error(large, truth).double(), *totals], 1)

    return judged(logarithms, depths, judge)


def _rmse(means: Sequence[float]) -> float:
    return math.sqrt(means[1] / means[4]) if means[4] else math.nan


def _relative(means: Sequence[float]) -> float:
    return 100 * means[2] / means[4] if means[4] else math.nan


def _near(means: Sequence[float]) -> float:
    return 100 * means[3] / means[4] if means[4] else math.nan


LOSS = Metric("loss", "loss", "", higher=False, digits=3, terms=_terms)
"""Absolute difference of the natural logarithms: the mean over the images of the mean over their pixels."""
RMSE = Metric("rmse", "RMSE", "", higher=False, digits=3, terms=_terms, value=_rmse)
"""Root mean squared error over the measured pixels of all images, in the unit of the depths."""
RELATIVE = Metric("absrel", "relative error", "%", higher=False, digits=1, terms=_terms, value=_relative)
"""Mean absolute error in relation to the depth, over the measured pixels of all images."""
DELTA1 = Metric("delta1", "delta 1", "%", higher=True, digits=1, terms=_terms, value=_near)
"""The share of measured pixels whose depth is predicted within a factor of 1.25."""


class Depth(Standardised):
    """A depth a pixel. Targets are float32 ``(batch, H, W)``, above 0, and NaN where nothing was measured.

    Predictions are natural logarithms of patches: they are enlarged to the size of a map where they meet one. The
    decoder learns logarithms with mean 0 and standard deviation 1 over the training pixels. When the training is over,
    mean and deviation go into its weights.
    """

    name = "depth"
    kind = DEPTH
    dense = True
    metrics = (LOSS, RMSE, DELTA1, RELATIVE)
    selected_by = "rmse"

    def outputs(self, names: Sequence[str]) -> int:
        """Give 1: the logarithm."""
        return 1

    def fitted(
        self, targets: TargetSet, train: NDArray[np.int64], config: "TrainConfig", weights: Mapping[str, float]
    ) -> "Self":
        """Take mean and deviation of the logarithms, and the maps' size; maps of one depth, or none, are refused."""
        task = copy(super().fitted(targets, train, config, weights))
        moments = np.zeros(3)
        for sample in train:  # not all at once: that would copy every map
            depths = targets.values[sample]
            logarithms = np.log(depths[~np.isnan(depths)], dtype=np.float64)
            moments += [logarithms.size, logarithms.sum(), (logarithms**2).sum()]
        mean = moments[1] / max(1, moments[0])
        variance = moments[2] / max(1, moments[0]) - mean**2
        if not variance > 1e-9 * (1 + mean**2):
            measured = "has the same depth" if moments[0] else "was measured"
            raise UserError(
                f"{'every' if moments[0] else 'no'} pixel of the {len(train)} training maps {measured}, from which "
                "nothing can be learned: choose another target set with --targets."
            )
        size = list(targets.values.shape[1:])
        task.constants = {MEAN: float(mean), DEVIATION: math.sqrt(variance), SIZE: size}
        task.mean, task.deviation, task.standardised = Vector([mean]), Vector([math.sqrt(variance)]), True
        return task

    def restored(self, constants: Mapping[str, Any]) -> "Self":
        """Take mean and deviation, which the weights hold already, and the maps' size."""
        size = size_of(constants)
        numbers = {name: constants.get(name) for name in (MEAN, DEVIATION)}
        if not all(isinstance(number, float) and math.isfinite(number) for number in numbers.values()):
            raise ValueError("the constants are not the mean and the deviation of logarithms")
        task = copy(self)
        task.constants = {**numbers, SIZE: size}
        return task

    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the mean absolute difference of the logarithms over every sample's pixels."""
        from losa_cache.tasks.measures.maps import losses

        return losses(self.predictions(outputs), targets, _log_error)

    def calibrated(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the loss of every sample."""
        from losa_cache.tasks.measures.maps import judged

        return judged(predictions, targets, _log_error)[:, None]

    def decided(self, predictions: "Tensor") -> "Tensor":
        """Give depths, float32 ``(..., H, W)``."""
        from losa_cache.tasks.measures.maps import enlarged

        return enlarged(predictions, tuple(self.constants[SIZE])).squeeze(-3).exp()

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give the nearest, the median and the farthest depth of each image, by ``name`` and ``value``."""
        depths = self.decided(predictions).flatten(1)
        told = {"nearest": depths.amin(1), "median": depths.median(1).values, "farthest": depths.amax(1)}
        return [
            [{"name": name, "value": float(values[at])} for name, values in told.items()] for at in range(len(depths))
        ]

    def details(self, outcome: "Outcome") -> "Details":
        """Show examples of depth maps."""
        from losa_cache.report.maps import depth_details

        return depth_details(outcome, self.decided(outcome.predictions).numpy())

    def require_choosable(self, targets: NDArray[Any], classes: Sequence[str], remedy: str) -> None:
        """Refuse too few images, and images of which nothing was measured."""
        super().require_choosable(targets, classes, remedy)
        if np.isnan(targets).all():
            raise UserError(f"nothing was measured in the {len(targets)} held-out images; {remedy}.")


TASK = Depth()
