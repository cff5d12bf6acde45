"""Several labels an image, each of which applies or does not: *not from the paper*."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.class_weights import BALANCED, class_weights
from losa_cache.targets.target_set import MULTILABEL, TargetSet
from losa_cache.tasks.base import Task, Vector
from losa_cache.tasks.measures.metric import Measure, Metric

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from losa_cache.report.details import Details
    from losa_cache.report.outcome import Outcome
    from losa_cache.train.config import TrainConfig

CROSS_ENTROPY, ASYMMETRIC = "cross-entropy", "asymmetric"
GAMMA, MARGIN = 4.0, 0.05
"""The asymmetric loss has this exponent for labels that do not apply, and takes this from their probability. Labels
that apply have the exponent 0, as their authors recommend for most data sets."""
THRESHOLDS = "thresholds"
MIDDLE = 0.5


def _mean_known(each: "Tensor", targets: "Tensor") -> "Tensor":
    """Average over the labels that are known, ``(K, batch, labels)`` to ``(K, batch)``; 0 where none is."""
    known = targets >= 0
    return each.where(known, 0).sum(-1) / known.sum(-1).clamp(min=1)


def _likelihood(probabilities: "Tensor", targets: "Tensor") -> "Tensor":
    from torch.nn.functional import binary_cross_entropy

    wanted = targets.clamp(min=0).to(probabilities).expand_as(probabilities)
    return _mean_known(binary_cross_entropy(probabilities, wanted, reduction="none"), targets)[..., None]


LOSS = Metric("loss", "loss", "", higher=False, digits=3, terms=_likelihood)
"""Binary cross entropy, in nats: the mean over an image's known labels, and over the images."""
MAP = Metric(
    "map", "mAP", "%", higher=True, digits=1, whole=Measure("average_precision", "mean_average_precision", 100)
)
MICRO_MAP = Metric(
    "micro_map",
    "micro AP",
    "%",
    higher=True,
    digits=1,
    whole=Measure("average_precision", "micro_average_precision", 100),
)
F1 = Metric("macro_f1", "macro F1", "%", higher=True, digits=1, whole=Measure("label_f1", "macro_label_f1", 100))
"""At a probability of one half: ``losa-cache eval`` tells it at the thresholds that held-out samples chose, too."""


class Multilabel(Task):
    """Several labels an image. Targets are 1, 0 or, where nobody says, -1, int8 ``(batch, labels)``; unknown ones count
    neither in the loss nor in a metric. Predictions are probabilities.
    """

    name = "multilabel"
    kind = MULTILABEL
    metrics = (LOSS, MAP)
    more = (MICRO_MAP, F1)
    selected_by = "map"
    training_losses = (CROSS_ENTROPY, ASYMMETRIC)
    training_loss = CROSS_ENTROPY
    weighs_classes = concludes = ranks = True
    weights: Vector | None = None
    """The weight of each label where it applies, in relation to where it does not; ``None``: 1."""

    @property
    def thresholds(self) -> list[float] | None:
        """The probability from which on each label is predicted, as held-out samples chose it; ``None``: one half."""
        chosen: list[float] | None = self.constants.get(THRESHOLDS)
        return chosen

    def outputs(self, names: Sequence[str]) -> int:
        """Say how many labels there are."""
        if not names:
            raise UserError("the target set has no labels: the task 'multilabel' needs at least 1.")
        return len(names)

    def fitted(
        self, targets: TargetSet, train: NDArray[np.int64], config: "TrainConfig", weights: Mapping[str, float]
    ) -> "Self":
        """Take the weights of the labels, too; a label that applies to no training sample is refused."""
        task = copy(super().fitted(targets, train, config, weights))
        applies, not_so = ((targets.values[train] == wanted).sum(0) for wanted in (1, 0))
        if missing := [name for name, count in zip(targets.names, applies, strict=True) if not count]:
            raise UserError(
                f"label {missing[0]!r} applies to none of the {len(train)} training samples: add samples that have it, "
                "or leave it out of the target set."
            )
        if config.class_weights == BALANCED:
            task.weights = Vector(not_so / applies)
        elif config.class_weights is not None:
            task.weights = Vector(class_weights(config.class_weights, applies, targets.names, weights) or [])
        return task

    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the binary cross entropy of every sample in nats, or the asymmetric loss: a mean over known labels.

        (Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021, equations 4 to 7.) Weights multiply
        the part of labels that apply.
        """
        from torch.nn.functional import logsigmoid

        present = -logsigmoid(outputs) * (1 if self.weights is None else self.weights.like(outputs))
        if self.training_loss == ASYMMETRIC:
            shifted = (outputs.sigmoid() - MARGIN).clamp(min=0)
            absent = -(shifted**GAMMA) * (1 - shifted).clamp(min=1e-8).log()
        else:
            absent = -logsigmoid(-outputs)
        return _mean_known(present.where(targets == 1, absent), targets)

    def predictions(self, outputs: "Tensor") -> "Tensor":
        """Give probabilities."""
        return outputs.sigmoid()

    def decided(self, predictions: "Tensor") -> "Tensor":
        """Say which labels are predicted, int8."""
        from torch import int8

        thresholds = self.thresholds
        return (predictions >= (MIDDLE if thresholds is None else predictions.new_tensor(thresholds))).to(int8)

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give the likeliest labels: ``rank``, ``class``, ``probability``, and whether the label is ``predicted``."""
        likeliest = predictions.float().topk(min(top_k, predictions.shape[-1]))
        chosen = self.decided(predictions).bool().gather(-1, likeliest.indices)
        parts = (likeliest.indices.tolist(), likeliest.values.tolist(), chosen.tolist())
        return [
            [
                {"rank": rank, "class": classes[number], "probability": probability, "predicted": predicted}
                for rank, (number, probability, predicted) in enumerate(zip(*of_sample, strict=True), 1)
            ]
            for of_sample in zip(*parts, strict=True)
        ]

    def details(self, outcome: "Outcome") -> "Details":
        """Show a line for each label, and the calibration."""
        from losa_cache.report.labels import label_details

        return label_details(outcome.predictions, outcome.targets, outcome.names, self.thresholds)

    def calibrated(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the binary cross entropy of every sample."""
        return _likelihood(predictions, targets).squeeze(-1)[:, None]

    def restored(self, constants: Mapping[str, Any]) -> "Self":
        """Take the thresholds."""
        thresholds = constants.get(THRESHOLDS)
        known = thresholds is None or (
            isinstance(thresholds, list) and all(isinstance(own, float) and 0 <= own <= 1 for own in thresholds)
        )
        if not known or constants.keys() - {THRESHOLDS}:
            raise ValueError("the constants are no thresholds from 0 to 1")
        task = copy(self)
        task.constants = constants
        return task

    def concluded(self, predictions: "Tensor", targets: "Tensor") -> "Self":
        """Choose for each label the threshold with the highest F1."""
        from losa_cache.tasks.measures.label_f1 import best_thresholds

        task = copy(self)
        task.constants = {THRESHOLDS: best_thresholds(predictions, targets).tolist()}
        return task

    def require_choosable(self, targets: NDArray[Any], classes: Sequence[str], remedy: str) -> None:
        """Refuse too few images, and images that no label applies to."""
        super().require_choosable(targets, classes, remedy)
        if not (targets == 1).any():
            raise UserError(
                f"no label applies to any of the {len(targets)} held-out images, so they tell no settings apart; "
                f"{remedy}."
            )


TASK = Multilabel()
