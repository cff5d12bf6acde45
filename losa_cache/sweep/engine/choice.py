"""The rule that chooses one setting from held-out results, and how sure the choice is. Pure.

*Not from the paper.* The best held-out value of the task's selection metric (:class:`losa_cache.tasks.Metric`) wins:
for classification, the highest top-1. Settings whose value is within one standard error of the best are level: the
held-out images cannot distinguish them. Among level settings the lowest held-out loss wins, each at its own best
calibration (:class:`losa_cache.sweep.engine.held_out_results.HeldOutResults`): the loss differs even if all values are
equal. After that the better value decides, then the smaller number of parameters. The standard error is that of the
difference between two settings on the same images. It is unknown for metrics that are no mean over images; then only
equal values are level.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.tasks import Metric

RESOLVED = 1.0
"""Points: the standard error of a share that a report asks for, where it is larger."""


@dataclass(frozen=True, eq=False)
class Setting:
    """The results of one setting on the held-out images.

    Attributes:
        name: its number.
        value: selection metric, the mean over its seeds.
        loss: loss of the task, likewise; ``None`` if it is not known.
        parameters: number of trained parameters.
        each: for every held-out image, in the same order for all settings, the term whose mean is the metric, averaged
            over the seeds, float ``(n,)``. For top-1 it is the share of seeds that are right. ``None`` if it is not
            known.
        losses: loss of every image, likewise.
    """

    name: int
    value: float
    loss: float | None
    parameters: int
    each: NDArray[np.floating[Any]] | None = None
    losses: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Choice:
    """The chosen setting, and how sure the choice is.

    Attributes:
        chosen: name of the setting.
        settings: number of settings.
        level: names of the settings that are level with the best, the chosen one first.
        rival: the setting that would have been chosen without the chosen one; ``None`` if there was no other.
        ahead: difference by which its held-out value is better than the rival's (for top-1 in points); below 0 if the
            loss decided.
        error: one standard error of that difference; ``None`` if it is not known.
        paired: whether the error is that of differences on the same images; otherwise it is that of two independent
            shares, which is too large rather than too small.
        loss_ahead: difference by which its held-out loss is better than the rival's.
        loss_error: one standard error of that difference.
        images: number of held-out images.
        needed: approximate number of held-out images for which ``error`` of a share would be :data:`RESOLVED`; ``None``
            if it is not known.
    """

    chosen: int
    settings: int
    level: list[int]
    rival: int | None = None
    ahead: float | None = None
    error: float | None = None
    paired: bool = False
    loss_ahead: float | None = None
    loss_error: float | None = None
    images: int | None = None
    needed: int | None = None

    def to_json(self, metric: Metric) -> dict[str, Any]:
        """Give all fields, and the sentences."""
        return asdict(self) | {"sure": sure(self, metric)}


def choose(settings: Sequence[Setting], images: int | None, metric: Metric) -> Choice | None:
    """Choose a setting.

    Args:
        settings: with results on the same held-out images.
        images: number of these images; ``None`` if it is not known. Then only equal values are level.
        metric: the selection metric.

    Returns:
        the choice; ``None`` without a setting.
    """
    order = _order(settings, images, metric)
    if not order:
        return None
    ours = order[0]
    level = _level(settings, images, metric)
    names = [setting.name for setting in order if setting in level]
    if len(order) == 1:
        return Choice(ours.name, 1, names, images=images)
    rival = _order(order[1:], images, metric)[0]
    error, paired = difference_error(ours, rival, images, metric)
    loss = None if ours.loss is None or rival.loss is None else rival.loss - ours.loss
    return Choice(
        chosen=ours.name,
        settings=len(settings),
        level=names,
        rival=rival.name,
        ahead=metric.merit(ours.value) - metric.merit(rival.value),
        error=error,
        paired=paired,
        loss_ahead=loss,
        loss_error=_loss_error(ours, rival),
        images=images,
        needed=math.ceil(images * (error / RESOLVED) ** 2) if metric.share and images and error is not None else None,
    )


def difference_error(a: Setting, b: Setting, images: int | None, metric: Metric) -> tuple[float | None, bool]:
    """Give one standard error of a difference of two values, and whether it is paired over the images.

    The paired error of shares is that of Agresti and Min (2005, "Simple improved confidence intervals for comparing
    matched proportions"), in points. It adds two images in all: half an image on which only the first setting is right,
    half an image on which only the second is right. So it is not 0 if both are right on the same images.
    """
    if a.each is not None and b.each is not None:
        apart = np.asarray(a.each, np.float64) - b.each
        if not metric.share:
            return _mean_error(apart), True
        count = len(apart) + 2
        variance = (float(apart @ apart) + 1) / count - (float(apart.sum()) / count) ** 2
        return 100 * math.sqrt(variance / count), True
    errors = [] if images is None else [metric.error(own.value, images) for own in (a, b)]
    known = [error for error in errors if error is not None]
    return (math.hypot(*known) if len(known) == 2 else None), False


def sure(choice: Choice, metric: Metric) -> str:
    """Say in plain words what decided, and how sure the choice is.

    Args:
        choice: the choice.
        metric: the selection metric.
    """
    if choice.rival is None or choice.ahead is None:
        return "There was one setting, so nothing was chosen."
    on = "the held-out images" if choice.images is None else f"{_count(choice.images, 'held-out image')}"
    told = (
        f"{_level_with(choice, metric, on)}. The chosen one is {_ahead(choice, metric)} the next one in {metric.title}"
    )
    if choice.error is not None:
        how = "paired over the images" if choice.paired else "as if each had been measured on other images"
        told += f" (one standard error of that difference, {how}: {metric.show_difference(choice.error)})"
    told += "."
    if len(choice.level) > 1:
        told += _decided(choice, metric)
    if choice.needed is not None and choice.error is not None and choice.error > RESOLVED:
        told += f" At least {_round_up(choice.needed):,} held-out images would be needed to resolve 1 point."
    return told


def _level_with(choice: Choice, metric: Metric, on: str) -> str:
    """Say how many settings are level with the best."""
    if choice.error is None:  # then only equal values are level
        if len(choice.level) == 1:
            return f"On {on} no other of the {choice.settings} settings reaches the {metric.title} of the chosen one"
        return f"{len(choice.level)} of {choice.settings} settings have the best {metric.title} on {on}"
    if len(choice.level) == 1:
        return f"On {on} no other of the {choice.settings} settings is within one standard error of the chosen one"
    return f"{len(choice.level)} of {choice.settings} settings are within one standard error of the best on {on}"


def _ahead(choice: Choice, metric: Metric) -> str:
    """Say how far the chosen setting is from the next one; where it won alone, a small lead is still one."""
    assert choice.ahead is not None
    if abs(choice.ahead) >= metric.resolution:
        return f"{'-' if choice.ahead < 0 else '+'}{metric.show_difference(abs(choice.ahead))} from"
    if len(choice.level) > 1:
        return "level with"
    return f"less than {metric.show_difference(2 * metric.resolution)} ahead of"


def _decided(choice: Choice, metric: Metric) -> str:
    if choice.loss_ahead is None or choice.loss_ahead <= 0:
        return " The held-out loss does not tell them apart either: the fewer parameters decided."
    error = "" if choice.loss_error is None else f" (one standard error of that difference: {choice.loss_error:.2g})"
    return (
        f" The {metric.title} cannot tell them apart, so the lowest held-out loss decided, by "
        f"{choice.loss_ahead:.2g}{error}."
    )


def _order(settings: Sequence[Setting], images: int | None, metric: Metric) -> list[Setting]:
    """Sort the settings: first those that are level with the best, by their loss; then the others, by their value."""
    level = _level(settings, images, metric)
    others = [setting for setting in settings if setting not in level]
    by_loss = sorted(level, key=lambda own: (_loss(own), -metric.merit(own.value), own.parameters))
    return by_loss + sorted(others, key=lambda own: _by_value(own, metric))


def _level(settings: Sequence[Setting], images: int | None, metric: Metric) -> list[Setting]:
    if not settings:
        return []
    best = min(settings, key=lambda own: _by_value(own, metric))
    return [
        own
        for own in settings
        if own is best
        or metric.merit(best.value) - metric.merit(own.value) <= (difference_error(best, own, images, metric)[0] or 0)
    ]


def _by_value(setting: Setting, metric: Metric) -> tuple[float, float, int]:
    return -metric.merit(setting.value), _loss(setting), setting.parameters


def _loss(setting: Setting) -> float:
    return setting.loss if setting.loss is not None and math.isfinite(setting.loss) else math.inf


def _loss_error(a: Setting, b: Setting) -> float | None:
    if a.losses is None or b.losses is None:
        return None
    return _mean_error(np.asarray(a.losses, np.float64) - b.losses)


def _mean_error(values: NDArray[np.float64]) -> float | None:
    """Give the standard error of the mean of values, of at least two."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _round_up(number: int) -> int:
    """Round up to two digits, which are enough for an estimate."""
    step = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step
