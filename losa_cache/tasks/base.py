"""What a kind of task is: its targets, its loss, its metrics, and what it offers. Nothing here imports torch or numpy.

A task is a subclass of :class:`Task` in a module of its own in this package, and an instance of it called ``TASK``. The
training loop, many trials at a time, sweeps, evaluation and reports know nothing else of what is learned.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from losa_cache.errors import UserError, nearest
from losa_cache.tasks.measures.metric import Metric

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from losa_cache.report.details import Details
    from losa_cache.report.outcome import Outcome
    from losa_cache.targets.target_set import TargetSet
    from losa_cache.train.config import TrainConfig

LOGISTIC, RIDGE = "logistic", "ridge"
"""Kinds of probes: regressions on classes, ridge regression on numbers."""
LEAST = 5
"""Held-out images that a choice takes. With fewer not even a setting that is right on all of them is ahead of one that
is wrong on all of them by more than chance (sign test: 2 to the power of -5 is 3 %)."""
ENOUGH = 500
"""Held-out images that do: of two settings that disagree on one image in twenty, which is usual for rates and decays of
one method, the difference then has a standard error of 1 point: sqrt(0.05 / 500)."""


class Vector:
    """Numbers that a loss reads on the device.

    They are copied to a device once, when they are first asked for: a step that is recorded as a CUDA graph may not
    copy from the host.

    Args:
        values: the numbers.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.values = [float(value) for value in values]
        self._copies: dict[tuple[Any, Any], Tensor] = {}

    def like(self, tensor: "Tensor") -> "Tensor":
        """Give them in the dtype of a tensor, and on its device."""
        key = (tensor.device, tensor.dtype)
        if key not in self._copies:
            self._copies[key] = tensor.new_tensor(self.values)
        return self._copies[key]


class Task(ABC):
    """A kind of task.

    A task that a data set was fitted to (:meth:`fitted`) is a copy that holds what it took from the training samples.

    Attributes:
        name: of its module, and of ``TrainConfig.task``.
        kind: of the target sets that it learns from (``losa_cache.targets.target_set.KINDS``).
        dense: whether there is an output for each patch: outputs are ``(K, batch, outputs, rows, columns)``.
        metrics: of an evaluation, in the order in which a run's metrics have them. One is ``loss``; it decides between
            settings that the selection metric cannot tell apart.
        more: metrics that ``--metric`` can name, too. They are computed where they are named, and by
            ``losa-cache eval``.
        selected_by: name of the metric that trials are chosen by.
        training_losses: names of the losses that it can be trained with, the default first. Empty: there is one.
        training_loss: the one that it is trained with.
        weighs_classes: whether the loss takes a weight for each class (``--class-weights``).
        constants: what was taken from training samples and is needed to use an adapter, as JSON: its config holds it.
        concludes: whether it takes something from held-out samples when the training is over (:meth:`concluded`).
        loss_options: fields of ``TrainConfig`` that the loss takes by name, each a number. Trials that train together
            may differ in them.
        balances: whether targets are classes that ``--sampling balanced`` can draw equally often.
        mixes: whether targets are class numbers, which mixup and cutmix can mix: then :meth:`soft` gives what is mixed,
            and :meth:`loss` takes it, too.
        probes: the probe on pooled rows that learns the same, as classifiers over all layers have it
            (``losa_cache.probe.kinds``): ``LOGISTIC``, which is the line to beat, too, or ``RIDGE``. Empty: none does.
        compares: whether a prediction is right or wrong, so that ``losa_cache.compare`` can count images.
        ranks: whether predictions are of the classes or labels, and grow with their probability: then tables name the
            likeliest, and :meth:`probability` is asked for. Otherwise predictions are numbers.
    """

    name: str
    kind: str = "class"
    dense: bool = False
    metrics: tuple[Metric, ...]
    more: tuple[Metric, ...] = ()
    selected_by: str
    training_losses: tuple[str, ...] = ()
    training_loss: str = ""
    weighs_classes: bool = False
    constants: Mapping[str, Any] = MappingProxyType({})
    concludes: bool = False
    loss_options: tuple[str, ...] = ()
    balances: bool = False
    mixes: bool = False
    probes: str = ""
    compares: bool = False
    ranks: bool = False

    @abstractmethod
    def outputs(self, names: Sequence[str]) -> int:
        """Say how many outputs the classifier has.

        Args:
            names: of the classes, labels or columns of the target set.

        Raises:
            UserError: for a target set from which the task cannot be learned.
        """

    def targets(self, given: "TargetSet") -> "TargetSet":
        """Read the targets off a target set of this task's kind: by default they are its values.

        Args:
            given: what a cache or a data set holds. Entries of samples that were skipped are never asked for.

        Returns:
            a target set whose values batches have in place of the labels.

        Raises:
            UserError: if these are no targets of this task.
        """
        return given

    def fitted(
        self, targets: "TargetSet", train: "NDArray[np.int64]", config: "TrainConfig", weights: "Mapping[str, float]"
    ) -> "Self":
        """Give a copy that knows what the task takes from the training samples, and from the options of a run.

        Args:
            targets: as :meth:`targets` gave them.
            train: numbers of the training samples.
            config: the options.
            weights: of the classes, by name, where a file gives them.

        Raises:
            UserError: for training samples from which the task cannot be learned.
        """
        return self.choosing(config.metric).trained_by(config.loss)

    def choosing(self, metric: str | None) -> "Self":
        """Give a copy that chooses by another metric, one of ``metrics`` or ``more``; ``None``: by its own.

        Raises:
            UserError: for a metric that it does not have.
        """
        if metric is None or metric == self.selected_by:
            return self
        known = {own.name: own for own in (*self.metrics, *self.more)}
        if metric not in known:
            raise UserError(
                f"metric is {metric!r}, which the task {self.name!r} does not have: choose one of {', '.join(known)}"
                f"{nearest(metric, list(known))}."
            )
        chosen = copy(self)
        chosen.selected_by = metric
        if known[metric] not in self.metrics:
            chosen.metrics = (*self.metrics, known[metric])
        return chosen

    def trained_by(self, loss: str | None) -> "Self":
        """Give a copy that is trained with another loss, one of ``training_losses``; ``None``: with the first.

        Raises:
            UserError: for a loss that it does not have.
        """
        known = self.training_losses
        if loss is not None and loss not in known:
            choices = f"choose one of {', '.join(known)}{nearest(loss, list(known))}" if known else "leave it out"
            raise UserError(f"loss is {loss!r}, which the task {self.name!r} does not have: {choices}.")
        trained = copy(self)
        trained.training_loss = loss or (known[0] if known else "")
        return trained

    def restored(self, constants: "Mapping[str, Any]") -> "Self":
        """Give a copy for a trained adapter, with the constants that its config holds.

        Raises:
            ValueError: for constants that are not those of this task.
        """
        if constants:
            raise ValueError(f"the task {self.name!r} has no constants")
        return self

    def concluded(self, predictions: "Tensor", targets: "Tensor") -> "Self":
        """Give a copy that knows what the task takes from held-out samples when the training is over.

        Args:
            predictions: of one trial on all held-out samples, ``(N, ...)``.
            targets: theirs, ``(N, ...)``.
        """
        return self

    def fold(self, classifier: "nn.Linear") -> None:  # noqa: B027 (most tasks scale nothing)
        """Put what outputs are scaled by into the trained classifier's weights, so that an adapter needs none of it."""

    def fold_probe(self, probe: "nn.Linear") -> None:  # noqa: B027
        """Put it into the weights of a probe, whose outputs are added to those of the classifier."""

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

    def probe_targets(self, targets: "Tensor") -> "Tensor":
        """Give the targets of a probe, ``(N, ...)``, whose outputs are added to the classifier's: by default these."""
        return targets

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

    def likeliest(self, predictions: "Tensor", count: int) -> "Tensor":
        """Number so many classes or labels of each sample, ``(..., count)``: its answer first, then by probability.

        Asked only where the task ranks.
        """
        return predictions.topk(count).indices

    def probability(self, predictions: "Tensor") -> "Tensor":
        """Turn predictions into probabilities, each by itself: by default they are such. Asked only where it ranks."""
        return predictions

    def columns(self, names: "Sequence[str]") -> "Sequence[str]":
        """Name the numbers that it predicts, for the columns of a table; none: they are counted. Asked if it ranks not.

        Args:
            names: of the target set's classes, labels or columns.
        """
        return ()

    def answers(self, predictions: "Tensor", classes: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """Give the answers for each sample, for people and for files: by default its ``value``.

        Args:
            predictions: ``(batch, ...)``.
            classes: names of the classes, labels or columns.
            top_k: how many of several possible answers are wanted, the likeliest first.
        """
        decided = self.decided(predictions)
        single = decided.ndim == 2 and decided.shape[1] == 1
        return [[{"value": value}] for value in (decided[:, 0] if single else decided).tolist()]

    def details(self, outcome: "Outcome") -> "Details":
        """Give the tables and charts of an evaluation: by default none."""
        from losa_cache.report.details import Details

        return Details()

    def selection_terms(self, predictions: "Tensor", targets: "Tensor") -> "Tensor":
        """Give the terms of the selection metric, ``(K, batch, S)``, with which trials are compared image by image.

        Asked only where it has terms.
        """
        if self.compares and self.selection.share:
            return (self.decided(predictions) == targets)[..., None]
        assert self.selection.terms is not None
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

    def selected_figure(self, predictions: "Tensor", targets: "Tensor") -> float:
        """Give the selection metric of one trial: predictions ``(1, N, ...)`` of all samples, and their targets."""
        if self.selection.whole is not None:
            return float(self.selection.whole(predictions, targets))
        return self.selection.value(self.selection_terms(predictions, targets)[0].double().mean(0).tolist())

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
