"""Semantic segmentation: one class a pixel, cross entropy, mean intersection over union. *Not from the paper*."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.class_weights import class_weights
from losa_cache.targets.target_set import IGNORED, MASK, TargetSet
from losa_cache.tasks.base import Task, Vector
from losa_cache.tasks.measures.metric import Metric
from losa_cache.tasks.measures.sizes import SIZE, size_of

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from losa_cache.report.details import Details
    from losa_cache.report.outcome import Outcome
    from losa_cache.train.config import TrainConfig


def _terms(outputs: "Tensor", masks: "Tensor") -> "Tensor":
    """Give the terms of all metrics, ``(K, samples, 1 + 3 C)``, in float64: the mean cross entropy of a sample's
    pixels, and of each class how many pixels are right, how many are predicted, and how many there are.
    """
    from torch import arange, bincount, cat

    from losa_cache.tasks.measures.maps import judged

    classes = outputs.shape[2]

    def judge(logits: "Tensor", targets: "Tensor") -> "Tensor":
        numbers, predicted, known = targets.long(), logits.argmax(1), targets != IGNORED
        first = classes * arange(len(targets), device=targets.device)[:, None, None]

        def count(values: "Tensor", which: "Tensor") -> "Tensor":
            return bincount((first + values)[which], minlength=classes * len(targets)).view(-1, classes).double()

        right = count(numbers, known & (predicted == numbers))
        loss = _cross_entropy(logits, targets)[:, None].double()
        return cat([loss, right, count(predicted, known), count(numbers, known)], 1)

    return judged(outputs, masks, judge)


def _cross_entropy(logits: "Tensor", masks: "Tensor", weights: "Tensor | None" = None) -> "Tensor":
    """Give the mean over the pixels that have a class, ``(B,)``; 0 where there are none."""
    from torch.nn import functional as F

    each = F.cross_entropy(logits, masks.long(), weight=weights, ignore_index=IGNORED, reduction="none")
    return each.flatten(1).sum(1) / (masks != IGNORED).flatten(1).sum(1).clamp(min=1)


def _counts(means: Sequence[float]) -> NDArray[np.float64]:
    """Give the rows ``right``, ``predicted`` and ``there``, ``(3, C)``."""
    return np.array(means[1:]).reshape(3, -1)


def _ious(means: Sequence[float]) -> NDArray[np.float64]:
    """Give the intersection over union of each class, in percent; NaN where it is neither predicted nor there."""
    right, predicted, there = _counts(means)
    union = predicted + there - right
    return 100 * np.divide(right, union, out=np.full_like(right, math.nan), where=union > 0)


def _mean_iou(means: Sequence[float]) -> float:
    ious = _ious(means)
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else math.nan


def _iou(means: Sequence[float], *, of: int) -> float:
    return float(_ious(means)[of])


def _accuracy(means: Sequence[float]) -> float:
    right, _, there = _counts(means).sum(1)
    return float(100 * right / there) if there else math.nan


LOSS = Metric("loss", "loss", "", higher=False, digits=3, terms=_terms)
"""Cross entropy, in nats, of a pixel: the mean over the images of the mean over their pixels."""
MIOU = Metric("miou", "mean IoU", "%", higher=True, digits=1, terms=_terms, value=_mean_iou)
"""Intersection over union of each class over the pixels of all images, and the mean over the classes that are predicted
or there."""
ACCURACY = Metric("pixel_accuracy", "pixel accuracy", "%", higher=True, digits=1, terms=_terms, value=_accuracy)
"""The share of pixels that are right, of those that have a class."""


class Segmentation(Task):
    """One class a pixel. Targets are class numbers, uint8 ``(batch, H, W)``, of which 255 is ignored. Outputs are
    logits of patches, and predictions too: they are enlarged to the size of a mask where they meet one.
    """

    name = "segmentation"
    kind = MASK
    dense = weighs_classes = True
    metrics = (LOSS, MIOU, ACCURACY)
    selected_by = "miou"
    weights: Vector | None = None
    """A weight for each class, of which the mean over the training pixels is 1; ``None``: all are 1."""

    def outputs(self, names: Sequence[str]) -> int:
        """Say how many classes there are; masks of one are refused."""
        if len(names) < 2:
            raise UserError(f"the masks have one class, {names[0]!r}: a segmentation needs at least 2.")
        return len(names)

    def fitted(
        self, targets: TargetSet, train: NDArray[np.int64], config: "TrainConfig", weights: Mapping[str, float]
    ) -> "Self":
        """Take the weights of the classes and the masks' size, too; masks without any class are refused."""
        counts = np.zeros(IGNORED + 1, np.int64)
        for sample in train:  # not all at once: that would copy every mask
            counts += np.bincount(targets.values[sample].ravel(), minlength=len(counts))
        if not counts[:IGNORED].any():
            raise UserError(
                f"no pixel of the {len(train)} training masks has a class (all are {IGNORED}, which is ignored): "
                "choose another target set with --targets."
            )
        task = copy(super().fitted(targets, train, config, weights))
        chosen = class_weights(config.class_weights, counts[: len(targets.names)], targets.names, weights)
        task.weights = None if chosen is None else Vector(chosen)
        task.constants = {SIZE: list(targets.values.shape[1:])}
        return task

    def restored(self, constants: Mapping[str, Any]) -> "Self":
        """Take the masks' size.

        Raises:
            ValueError: if there is none.
        """
        task = copy(self)
        task.constants = {SIZE: size_of(constants)}
        return task

    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the mean cross entropy of every sample's pixels, in nats; pixels weigh as their classes do."""
        from losa_cache.tasks.measures.maps import losses

        weights = None if self.weights is None else self.weights.like(outputs)
        return losses(outputs, targets, partial(_cross_entropy, weights=weights))

    def decided(self, predictions: "Tensor") -> "Tensor":
        """Give masks: the likeliest class of each pixel, uint8 ``(..., H, W)``."""
        from torch import uint8

        from losa_cache.tasks.measures.maps import enlarged

        return enlarged(predictions, tuple(self.constants[SIZE])).argmax(-3).to(uint8)

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give the classes that cover most of each image: ``rank``, ``class``, and its ``share`` of the pixels."""
        from torch import stack

        masks = self.decided(predictions)
        shares = stack([(masks == number).flatten(1).double().mean(1) for number in range(len(classes))], 1)
        largest = shares.topk(min(top_k, len(classes)))
        return [
            [
                {"rank": rank, "class": classes[number], "share": share}
                for rank, (number, share) in enumerate(zip(numbers, each, strict=True), 1)
            ]
            for numbers, each in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
        ]

    def details(self, outcome: "Outcome") -> "Details":
        """Show a line for each class, and examples of masks."""
        from losa_cache.report.maps import mask_details

        counts = _counts(outcome.terms[MIOU.name].double().mean(0).tolist())
        return mask_details(outcome, self.decided(outcome.predictions).numpy(), counts)

    def require_choosable(self, targets: NDArray[Any], classes: Sequence[str], remedy: str) -> None:
        """Refuse too few images, and images whose pixels have one class, or none."""
        super().require_choosable(targets, classes, remedy)
        known = {int(number) for mask in targets for number in np.unique(mask)} - {IGNORED}
        if len(known) < 2:
            only = f"are of class {classes[known.pop()]!r}" if known else "have no class"
            raise UserError(
                f"all pixels of the {len(targets)} held-out images {only}, so they tell no settings apart; {remedy}."
            )


TASK = Segmentation()
