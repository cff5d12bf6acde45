"""Single-label classification: one class an image, cross entropy, top-1. The paper's task."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.class_weights import class_weights
from losa_cache.targets.target_set import TargetSet
from losa_cache.tasks.base import LOGISTIC, Task, Vector
from losa_cache.tasks.measures.metric import Measure, Metric

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from losa_cache.report.details import Details
    from losa_cache.report.outcome import Outcome
    from losa_cache.train.config import TrainConfig

AMONG = 5
CROSS_ENTROPY, FOCAL = "cross-entropy", "focal"
GAMMA = 2.0  # of the focal loss, as Lin et al. recommend
TEMPERATURES = [2 ** (step / 4) for step in range(-12, 13)]


def _likelihood(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Negative log-likelihood of each sample's class, ``(K, samples, 1)``."""
    return -log_probabilities.gather(2, labels.expand(len(log_probabilities), -1)[..., None])


def _right(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Say for each of the likeliest classes whether it is the sample's, ``(K, samples, 5)`` or fewer."""
    return log_probabilities.topk(min(AMONG, log_probabilities.shape[2])).indices == labels[:, None]


def _first_right(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    return _right(log_probabilities, labels)[..., :1]


def _any_right(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    return _right(log_probabilities, labels).any(2, keepdim=True)


def _classes(names: Sequence[str]) -> str:
    return f"one class, {names[0]!r}" if names else "no classes"


def percent(means: Sequence[float]) -> float:
    """Give a share in percent."""
    return 100 * means[0]


LOSS = Metric("loss", "loss", "", higher=False, digits=3, terms=_likelihood)
"""Cross entropy, in nats, without smoothing."""
TOP1 = Metric("top1", "top-1", "%", higher=True, digits=1, terms=_first_right, value=percent, share=True)
TOP5 = Metric("top5", "top-5", "%", higher=True, digits=1, terms=_any_right, value=percent, share=True)
"""The share of samples whose class is among the five likeliest; with fewer than 6 classes it is 100."""
BALANCED_ACCURACY = Metric(
    "balanced_accuracy",
    "balanced accuracy",
    "%",
    higher=True,
    digits=1,
    whole=Measure("class_counts", "balanced_accuracy", 100),
)
MACRO_F1 = Metric("macro_f1", "macro F1", "%", higher=True, digits=1, whole=Measure("class_counts", "macro_f1", 100))
ECE = Metric(
    "ece",
    "calibration error",
    "%",
    higher=False,
    digits=1,
    whole=Measure("calibration", "calibration_error", 100),
)
AUROC = Metric("auroc", "AUROC", "", higher=True, digits=3, whole=Measure("auroc", "two_class_auroc"))
"""The area under the ROC curve of the second of two classes."""


class Classification(Task):
    """One class an image. Targets are class numbers, int64 ``(batch,)``; mixed ones are shares of the classes, float32
    ``(batch, classes)``. Predictions are log-probabilities.
    """

    name = "classification"
    metrics: tuple[Metric, ...] = (LOSS, TOP1, TOP5)
    more: tuple[Metric, ...] = (BALANCED_ACCURACY, MACRO_F1, ECE, AUROC)
    selected_by = "top1"
    training_losses: tuple[str, ...] = (CROSS_ENTROPY, FOCAL)
    training_loss = CROSS_ENTROPY
    loss_options: tuple[str, ...] = ("label_smoothing",)
    weighs_classes = balances = mixes = compares = ranks = True
    probes = LOGISTIC
    weights: Vector | None = None
    """A weight for each class, of which the mean over the training samples is 1; ``None``: all are 1."""

    def outputs(self, names: Sequence[str]) -> int:
        """Say how many classes there are; a data set of one is refused."""
        if len(names) < 2:
            raise UserError(f"the targets have {_classes(names)}: a classifier needs at least 2.")
        return len(names)

    def fitted(
        self, targets: TargetSet, train: NDArray[np.int64], config: "TrainConfig", weights: Mapping[str, float]
    ) -> "Self":
        """Take the weights of the classes, too."""
        if config.metric == AUROC.name and len(targets.names) != 2:
            raise UserError(
                f"metric is {AUROC.name!r}, which is of two classes, and there are {len(targets.names)}: choose "
                "another --metric."
            )
        task = copy(super().fitted(targets, train, config, weights))
        counts = np.bincount(targets.values[train], minlength=len(targets.names))
        chosen = class_weights(config.class_weights, counts, targets.names, weights)
        task.weights = None if chosen is None else Vector(chosen)
        return task

    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the cross entropy of every sample with label smoothing, as torch's, in nats."""
        smoothing = options["label_smoothing"]
        found = outputs.log_softmax(-1)
        right = found.gather(2, targets.expand(len(found), -1)[..., None]).squeeze(2)
        each = -((1 - smoothing) * right + smoothing * found.mean(2))
        if self.training_loss == FOCAL:
            each = each * (1 - right.exp()) ** GAMMA
        return each if self.weights is None else each * self.weights.like(outputs)[targets]

    def loss(self, outputs: "Tensor", targets: "Tensor", **options: float) -> "Tensor":
        """Give torch's own cross entropy, which takes mixed targets, too; or the mean of the weighted or focal losses.

        A weighted or focal loss of mixed targets is the mean of those of the classes, by their shares.
        """
        from torch import arange
        from torch.nn import functional as F

        if self.training_loss == CROSS_ENTROPY and self.weights is None:
            return F.cross_entropy(outputs, targets, label_smoothing=options["label_smoothing"])
        if targets.ndim == 1:
            return super().loss(outputs, targets, **options)
        classes = outputs.shape[-1]
        each_class = arange(classes, device=outputs.device).repeat_interleave(len(outputs))
        repeated = outputs.repeat(classes, 1)
        smoothing = {name: outputs.new_full((1, 1), value) for name, value in options.items()}
        by_class = self.losses(repeated[None], each_class, **smoothing).view(classes, len(outputs))
        return (by_class.mT * targets).sum(1).mean()

    def predictions(self, outputs: "Tensor") -> "Tensor":
        """Give log-probabilities."""
        return outputs.log_softmax(-1)

    def sum_clips(self, total: "Tensor", predictions: "Tensor") -> "Tensor":
        """Add probabilities."""
        return total.logaddexp(predictions)

    def average_clips(self, total: "Tensor", clips: int) -> "Tensor":
        """Average probabilities."""
        return total - math.log(clips)

    def decided(self, predictions: "Tensor") -> "Tensor":
        """Give the likeliest class."""
        return predictions.argmax(-1)

    def probability(self, predictions: "Tensor") -> "Tensor":
        """Give probabilities."""
        return predictions.exp()

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give the likeliest classes: ``rank``, ``class`` and ``probability``."""
        chosen = self.likeliest(predictions, min(top_k, predictions.shape[-1]))
        shares = self.probability(predictions.float()).gather(-1, chosen)
        return [
            [
                {"rank": rank, "class": classes[number], "probability": probability}
                for rank, (number, probability) in enumerate(zip(numbers, probabilities, strict=True), 1)
            ]
            for numbers, probabilities in zip(chosen.tolist(), shares.tolist(), strict=True)
        ]

    def details(self, outcome: "Outcome") -> "Details":
        """Show a line for each class, the confusion matrix and the calibration."""
        from losa_cache.report.classes import class_details

        return class_details(outcome.predictions, self.decided(outcome.predictions), outcome.targets, outcome.names)

    def calibrated(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the cross entropy at each of 25 temperatures, from 1/8 to 8.

        (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.) Without it label smoothing, dropout and
        small rates, which make a classifier less sure, would win or lose by that alone.
        """
        from torch import stack

        scaled = [(predictions / temperature).log_softmax(-1) for temperature in TEMPERATURES]
        return stack([_likelihood(own, targets).squeeze(2) for own in scaled], 1)

    def soft(self, targets: "Tensor", outputs: int) -> "Tensor":
        """Give all of a sample's share to its class."""
        from torch.nn import functional as F

        return F.one_hot(targets, outputs).float()

    def require_choosable(self, targets: NDArray[Any], classes: Sequence[str], remedy: str) -> None:
        """Refuse too few images, and images of one class, too."""
        super().require_choosable(targets, classes, remedy)
        if len(found := np.unique(targets)) == 1:
            raise UserError(
                f"all {len(targets)} held-out images are of class {classes[int(found[0])]!r}, on which every setting "
                f"may be right: a choice takes images of at least two classes; {remedy}."
            )


TASK = Classification()
