"""One or more numbers an image: *not from the paper*."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.target_set import NUMBERS, TargetSet
from losa_cache.tasks.base import RIDGE, Vector
from losa_cache.tasks.measures.metric import Measure, Metric
from losa_cache.tasks.measures.standardised import DEVIATION, MEAN, Standardised

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from losa_cache.report.details import Details
    from losa_cache.report.outcome import Outcome
    from losa_cache.train.config import TrainConfig


def _squared(numbers: "Tensor", targets: "Tensor") -> "Tensor":
    return (numbers - targets).square().mean(-1, keepdim=True)


LOSS = Metric("loss", "loss", "", higher=False, digits=4, terms=_squared)
"""Mean squared error in the unit of the targets, averaged over columns."""
R2 = Metric("r2", "R²", "", higher=True, digits=3, whole=Measure("regression", "r2"))
MAE = Metric(
    "mae", "mean absolute error", "", higher=False, digits=3, whole=Measure("regression", "mean_absolute_error")
)
RMSE = Metric("rmse", "RMSE", "", higher=False, digits=3, whole=Measure("regression", "root_mean_squared_error"))
SPEARMAN = Metric("spearman", "Spearman", "", higher=True, digits=3, whole=Measure("spearman", "spearman"))


class Regression(Standardised):
    """One or more numbers an image. Targets are float32 ``(batch, columns)``. Predictions are in the targets' unit.

    The classifier learns targets whose columns have mean 0 and standard deviation 1 on the training samples. When the
    training is over, mean and deviation go into its weights, so that an adapter gives numbers in the targets' unit.
    """

    name = "regression"
    kind = NUMBERS
    metrics = (LOSS, R2, MAE)
    more = (RMSE, SPEARMAN)
    selected_by = "r2"
    probes = RIDGE
    training_losses = ("mse", "l1", "huber")
    training_loss = "mse"

    def outputs(self, names: Sequence[str]) -> int:
        """Say how many columns there are."""
        if not names:
            raise UserError("the target set has no columns: the task 'regression' needs at least 1.")
        return len(names)

    def fitted(
        self, targets: TargetSet, train: NDArray[np.int64], config: "TrainConfig", weights: Mapping[str, float]
    ) -> "Self":
        """Take mean and standard deviation of every column; a column of equal numbers is refused."""
        task = copy(super().fitted(targets, train, config, weights))
        numbers = targets.values[train].astype(np.float64)
        mean, deviation = numbers.mean(0), numbers.std(0)
        if constant := [name for name, own in zip(targets.names, deviation, strict=True) if not own > 0]:
            raise UserError(
                f"column {constant[0]!r} is {numbers[0, list(targets.names).index(constant[0])]:g} in all {len(train)} "
                "training samples, from which nothing can be learned: leave it out of the target set."
            )
        task.mean, task.deviation, task.standardised = Vector(mean), Vector(deviation), True
        task.constants = {MEAN: task.mean.values, DEVIATION: task.deviation.values}
        return task

    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the loss of every sample on standardised targets, the mean over the columns."""
        from torch.nn.functional import huber_loss, l1_loss, mse_loss

        wanted = self.probe_targets(targets.to(outputs))
        match self.training_loss:
            case "l1":
                each = l1_loss(outputs, wanted.expand_as(outputs), reduction="none")
            case "huber":
                each = huber_loss(outputs, wanted.expand_as(outputs), reduction="none")
            case _:
                each = mse_loss(outputs, wanted.expand_as(outputs), reduction="none")
        return each.mean(-1)

    def probe_targets(self, targets: "Tensor") -> "Tensor":
        """Give standardised targets."""
        return (targets - self.mean.like(targets)) / self.deviation.like(targets)

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """Name the columns as the target set does."""
        return names

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give every column's number: ``name`` and ``value``."""
        return [
            [{"name": name, "value": value} for name, value in zip(classes, numbers, strict=True)]
            for numbers in predictions.tolist()
        ]

    def details(self, outcome: "Outcome") -> "Details":
        """Show a line for each column, and predictions against targets."""
        from losa_cache.report.columns import column_details

        return column_details(outcome.predictions, outcome.targets, outcome.names)

    def calibrated(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the squared error of every sample in standard deviations of the training targets."""
        return ((predictions - targets) / self.deviation.like(predictions)).square().mean(-1)[:, None]

    def restored(self, constants: Mapping[str, Any]) -> "Self":
        """Take mean and deviation, which the weights hold already."""
        columns = [constants.get(name) for name in (MEAN, DEVIATION)]
        numbers = all(isinstance(own, list) and all(isinstance(one, float) for one in own) for own in columns)
        if constants.keys() != {MEAN, DEVIATION} or not numbers:
            raise ValueError("the constants are not the mean and the deviation of every column")
        task = copy(self)
        task.constants = constants
        task.mean, task.deviation = Vector(constants[MEAN]), Vector(constants[DEVIATION])
        return task

    def require_choosable(self, targets: NDArray[Any], classes: Sequence[str], remedy: str) -> None:
        """Refuse too few images, and images whose numbers are all equal."""
        super().require_choosable(targets, classes, remedy)
        if (targets == targets[0]).all():
            raise UserError(
                f"the numbers of all {len(targets)} held-out images are equal, so they tell no settings apart; "
                f"{remedy}."
            )


TASK = Regression()
