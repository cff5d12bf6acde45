"""What a kind of task is: its targets, its loss, its metrics, and what it offers. Nothing here imports torch or numpy.

A task is a subclass of :class:`Task` in a module of its own in this package, and an instance of it called ``TASK``. The
training loop, many trials at a time, sweeps, evaluation and reports know nothing else of what is learned.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from losa_cache.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Terms = Callable[["Tensor", "Tensor"], "Tensor"]

LEAST = 5
"""Held-out images that a choice takes. With fewer not even a setting that is right on all of them is ahead of one that
is wrong on all of them by more than chance (sign test: 2 to the power of -5 is 3 %)."""
ENOUGH = 500
"""Held-out images that do: of two settings that disagree on one image in twenty, which is usual for rates and decays of
one method, the difference then has a standard error of 1 point: sqrt(0.05 / 500)."""


def standard_error(share: float, samples: int) -> float:
    """Give the standard error of a share in percent, such as top-1, measured on so many samples, in points.

    It is that of Agresti and Coull, which is finite at 0 and 100 %.
    """
    middle = (share / 100 * samples + 2) / (samples + 4)
    return 100 * math.sqrt(middle * (1 - middle) / (samples + 4))


def first(means: Sequence[float]) -> float:
    """Give the one mean of a metric that is a mean over samples."""
    return means[0]


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    Attributes:
        name: in files, ``top1``; with ``val_`` before it where it is of held-out samples.
        title: for people, ``top-1``.
        unit: written behind a value, ``%``; empty: nothing is.
        higher: whether a higher value is better.
        digits: behind the point, in a sentence.
        terms: predictions ``(K, samples, ...)`` (:meth:`Task.predictions`) and targets to what is averaged over all
            samples, ``(K, samples, S)``.
        value: the S means, in float64, to the figure. By default it is the first mean itself.
        share: whether it is the share of samples that are right, in percent: one term, 0 or 1. Then its standard error
            is known, and differences are given in points.
    """

    name: str
    title: str
    unit: str
    higher: bool
    digits: int
    terms: Terms
    value: Callable[[Sequence[float]], float] = first
    share: bool = False

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of one term: then two values on the same samples can be compared sample by sample."""
        return self.share or self.value is first

    @property
    def held_out(self) -> str:
        """Its name in a run's metrics, of held-out samples."""
        return f"val_{self.name}"

    @property
    def label(self) -> str:
        """Its title and unit, as a column or an axis has them: ``top-1 (%)``."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def resolution(self) -> float:
        """Half of the last digit that a sentence shows: smaller differences are none."""
        return 10.0**-self.digits / 2

    def show(self, value: float, more: int = 0) -> str:
        """Write a value with its unit, with more digits where asked for."""
        return f"{value:.{self.digits + more}f}{' ' * bool(self.unit)}{self.unit}"

    def show_difference(self, value: float, more: int = 0) -> str:
        """Write a difference of two values: of shares in points."""
        return f"{value:.{self.digits + more}f} points" if self.share else self.show(value, more)

    def show_around(self, mean: float, spread: float) -> str:
        """Write a mean and what lies around it: ``97.8 ± 0.2 %``."""
        return f"{mean:.{self.digits}f} ± {self.show(spread)}"

    def merit(self, value: float) -> float:
        """Give a number that is higher where the value is better, to put values in order."""
        return value if self.higher else -value

    def error(self, value: float, samples: int) -> float | None:
        """Give one standard error of a value that was measured on so many samples; ``None``: it is not known."""
        return standard_error(value, samples) if self.share else None


class Task(ABC):
    """A kind of task.

    Attributes:
        name: of its module, and of ``TrainConfig.task``.
        metrics: of an evaluation, in the order in which a run's metrics have them. One is ``loss``; it decides between
            settings that the selection metric cannot tell apart.
        selected_by: name of the metric that trials are chosen by.
        loss_options: fields of ``TrainConfig`` that the loss takes by name, each a number. Trials that train together
            may differ in them.
        balances: whether targets are classes that ``--sampling balanced`` can draw equally often.
        mixes: whether targets are class numbers, which mixup and cutmix can mix: then :meth:`soft` gives what is mixed,
            and :meth:`loss` takes it, too.
        probes: whether a logistic regression on pooled rows learns the same, as classifiers over all layers and the
            line to beat have it (``losa_cache.probe``).
        compares: whether a prediction is right or wrong, so that ``losa_cache.compare`` can count images.
    """

    name: str
    metrics: tuple[Metric, ...]
    selected_by: str
    loss_options: tuple[str, ...] = ()
    balances: bool = False
    mixes: bool = False
    probes: bool = False
    compares: bool = False

    @abstractmethod
    def outputs(self, classes: Sequence[str]) -> int:
        """Say how many outputs the classifier has.

        Args:
            classes: names of the classes that labels number.

        Raises:
            UserError: for a data set from which the task cannot be learned.
        """

    def targets(self, labels: "NDArray[np.int64]", classes: Sequence[str]) -> "NDArray[Any]":
        """Read the targets off a data set's labels, or a cache's.

        Args:
            labels: the number of each sample's class, ``(N,)``; -1 where a sample was skipped, which is never asked
                for.
            classes: their names.

        Returns:
            targets ``(N, ...)``, which batches have in place of the labels: by default the labels themselves.

        Raises:
            UserError: if the labels are no targets of this task.
        """
        return labels

    @abstractmethod
    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the training loss of every sample, of K trials.

        It may be recorded as a CUDA graph: nothing in it may wait for the device.

        Args:
            outputs: of the classifiers, ``(K, batch, outputs)``.
            targets: of the samples, ``(batch, ...)``.
            options: those of ``loss_options``, each ``(K, 1)``.

        Returns:
            ``(K, batch)``.
        """

    def loss(self, outputs: "Tensor", targets: "Tensor", **options: float) -> "Tensor":
        """Give the mean training loss of a batch, ``()``, of one trial: ``outputs`` are ``(batch, outputs)``.

        Where the task mixes, targets may be mixed ones, too.
        """
        each = {name: outputs.new_full((1, 1), value) for name, value in options.items()}
        return self.losses(outputs[None], targets, **each).mean()

    def predictions(self, outputs: "Tensor") -> "Tensor":
        """Give what metrics judge: of outputs ``(K, batch, outputs)`` by default they themselves."""
        return outputs

    def sum_clips(self, total: "Tensor", predictions: "Tensor") -> "Tensor":
        """Add the predictions of another clip of the same videos to those of the clips before."""
        return total + predictions

    def average_clips(self, total: "Tensor", clips: int) -> "Tensor":
        """Average predictions over the clips that were added."""
        return total / clips

    def decided(self, predictions: "Tensor") -> "Tensor":
        """Give the answer for each sample, as it is kept beside its target: by default the prediction itself."""
        return predictions

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give the answers for each sample, for people and for files: by default its ``value``.

        Args:
            predictions: ``(batch, ...)``.
            classes: names of the classes.
            top_k: how many of several possible answers are wanted, the likeliest first.
        """
        decided = self.decided(predictions)
        single = decided.ndim == 2 and decided.shape[1] == 1
        return [[{"value": value}] for value in (decided[:, 0] if single else decided).tolist()]

    def selection_terms(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the terms of the selection metric, ``(K, batch, S)``, with which trials are compared image by image."""
        if self.compares:
            return (self.decided(predictions) == targets)[..., None]
        return self.selection.terms(predictions, targets)

    def calibrated(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the held-out loss of every sample at each of C calibrations, ``(K, C, batch)``.

        A trial is judged by that calibration which is best for all of its samples. By default there is one: none.
        """
        return self.losses(predictions, targets)[:, None]

    def soft(self, targets: "Tensor", outputs: int) -> "Tensor":
        """Turn plain targets into what mixup mixes, ``(batch, outputs)``. Asked only where the task mixes."""
        raise NotImplementedError

    def require_choosable(self, targets: "NDArray[Any]", classes: Sequence[str], remedy: str) -> None:
        """Refuse held-out images on which no choice between settings can be made.

        Args:
            targets: of the held-out images.
            classes: names of the classes.
            remedy: what to do, as the end of a sentence.

        Raises:
            UserError: for too few images.
        """
        if len(targets) < LEAST:
            images = f"{len(targets)} image{'' if len(targets) == 1 else 's'}"
            enough = f", and about {ENOUGH} to be sure of 1 point" if self.selection.share else ""
            raise UserError(
                f"{images} held out cannot tell settings apart: a choice takes at least {LEAST}{enough}; {remedy}."
            )

    @property
    def selection(self) -> Metric:
        """The metric that trials are chosen by."""
        return self.metric(self.selected_by)

    def metric(self, name: str) -> Metric:
        """Find a metric by its name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def options_of(self, config: object) -> dict[str, float]:
        """Take the options of the loss from those of a run."""
        return {name: getattr(config, name) for name in self.loss_options}

    def say(self, figures: Mapping[str, float], more: int = 0, *, errors: int | None = None) -> str:
        """Write the metrics of an evaluation as ``top-1 97.8 %, top-5 100.0 %, loss 0.112``, the loss last.

        Args:
            figures: by name.
            more: digits than usual.
            errors: samples that were evaluated: the standard error of the selection metric follows it, if it is known.
        """
        told = []
        for metric in sorted(self.metrics, key=lambda metric: metric.name == "loss"):
            value = figures[metric.name]
            error = metric.error(value, errors) if errors and metric is self.selection else None
            behind = "" if error is None else f" (standard error {metric.show_difference(error)})"
            told.append(f"{metric.title} {metric.show(value, more)}{behind}")
        return ", ".join(told)
