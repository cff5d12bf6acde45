"""A figure of an evaluation, and how it is computed and written. Nothing here imports torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Terms = Callable[["Tensor", "Tensor"], "Tensor"]
PERCENT = "%"


def standard_error(share: float, samples: int) -> float:
    """Give the standard error of a share in percent, such as top-1, measured on so many samples, in points.

    It is that of Agresti and Coull, which is finite at 0 and 100 %.
    """
    middle = (share / 100 * samples + 2) / (samples + 4)
    return 100 * math.sqrt(middle * (1 - middle) / (samples + 4))


@dataclass(frozen=True)
class Measure:
    """A function of :mod:`losa_cache.tasks.measures`, which is imported with torch when it is called first.

    Attributes:
        module: of the function.
        name: of the function.
        scale: its result is multiplied by it: 100 gives percent.
    """

    module: str
    name: str
    scale: float = 1

    def __call__(self, predictions: "Tensor", targets: "Tensor", weights: "Tensor | None" = None) -> "Tensor":
        """Give the figure of each trial, or of each draw of weights (arguments as of the function)."""
        measure = getattr(import_module(f"losa_cache.tasks.measures.{self.module}"), self.name)
        return self.scale * measure(predictions, targets, weights)


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
            samples, ``(K, samples, S)``. ``None``: no means give the figure, and ``whole`` computes it.
        value: the S means, in float64, to the figure. By default it is the first mean itself. NaN: the figure is not
            defined on these samples.
        whole: the predictions and targets of all samples to the figure of each trial, ``(K,)``: for what depends on
            the order of all predictions, such as the area under a ROC curve.
        share: whether it is the share of samples that are right, in percent: one term, 0 or 1. Then its standard error
            is known.
    """

    name: str
    title: str
    unit: str
    higher: bool
    digits: int
    terms: Terms | None = None
    value: Callable[[Sequence[float]], float] = first
    share: bool = False
    whole: Measure | None = None

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of one term: then two values on the same samples can be compared sample by sample."""
        return self.terms is not None and (self.share or self.value is first)

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
        """Write a difference of two values: of percentages in points."""
        return f"{value:.{self.digits + more}f} points" if self.unit == PERCENT else self.show(value, more)

    def show_around(self, mean: float, spread: float) -> str:
        """Write a mean and what lies around it: ``97.8 ± 0.2 %``."""
        return f"{mean:.{self.digits}f} ± {self.show(spread)}"

    def merit(self, value: float) -> float:
        """Give a number that is higher where the value is better, to put values in order; NaN is worst."""
        return -math.inf if math.isnan(value) else value if self.higher else -value

    def error(self, value: float, samples: int) -> float | None:
        """Give one standard error of a value that was measured on so many samples; ``None``: it is not known."""
        return standard_error(value, samples) if self.share else None
