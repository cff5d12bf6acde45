"""The rule by which one setting is chosen from held-out results, and how sure the choice is. Pure.

*Not from the paper.* The best held-out accuracy wins. Settings whose accuracy is within one standard error of the best
are level: the held-out images cannot tell them apart. Of those the lowest held-out loss wins, each at its own best
temperature (:class:`losa_cache.sweep.engine.held_out_results.HeldOutResults`): it still differs where all accuracies
are the same. Then the higher accuracy decides, then the fewer parameters. The standard error is that of the difference
between two settings on the same images.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.probe.held_out import standard_error

RESOLVED = 1.0
"""Points: the standard error that a report asks for, where it is larger."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What was measured of one setting on the held-out images.

    Attributes:
        name: its number.
        top1: in percent, the mean over its seeds.
        loss: cross entropy in nats, likewise; ``None``: not known.
        parameters: trained ones.
        hits: of every held-out image, in one order for all settings, whether it was right: 0 or 1, or the share of the
            seeds with which it was, float ``(n,)``; ``None``: not known.
        losses: of every image, likewise.
    """

    name: int
    top1: float
    loss: float | None
    parameters: int
    hits: NDArray[np.floating[Any]] | None = None
    losses: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and how sure that is.

    Attributes:
        chosen: name of the setting.
        settings: how many there were.
        level: names of those that the held-out accuracy cannot tell from the best, the chosen one first.
        rival: the setting that would have been chosen without the chosen one; ``None``: there was no other.
        ahead: points of held-out top-1 by which the chosen one is ahead of it; below 0 where the loss decided.
        error: one standard error of that difference, in points; ``None``: not known.
        paired: whether the error is that of a difference image by image; otherwise as of two independent shares, which
            is rather too large.
        loss_ahead: nats of held-out loss by which the chosen one is better than the rival.
        loss_error: one standard error of that.
        images: held out.
        needed: held-out images, about, with which ``error`` would be :data:`RESOLVED`.
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

    def to_json(self) -> dict[str, Any]:
        """Give all fields, and the sentences."""
        return asdict(self) | {"sure": sure(self)}


def choose(settings: Sequence[Setting], images: int | None) -> Choice | None:
    """Choose a setting.

    Args:
        settings: with results on the same held-out images.
        images: how many those are; ``None``: not known. Then only equal accuracies are level.

    Returns:
        the choice; ``None`` without a setting.
    """
    order = _order(settings, images)
    if not order:
        return None
    ours = order[0]
    level = _level(settings, images)
    names = [setting.name for setting in order if setting in level]
    if len(order) == 1:
        return Choice(ours.name, 1, names, images=images)
    rival = _order(order[1:], images)[0]
    error, paired = difference_error(ours, rival, images)
    loss = None if ours.loss is None or rival.loss is None else rival.loss - ours.loss
    return Choice(
        chosen=ours.name,
        settings=len(settings),
        level=names,
        rival=rival.name,
        ahead=ours.top1 - rival.top1,
        error=error,
        paired=paired,
        loss_ahead=loss,
        loss_error=_loss_error(ours, rival),
        images=images,
        needed=None if error is None or images is None else math.ceil(images * (error / RESOLVED) ** 2),
    )


def difference_error(a: Setting, b: Setting, images: int | None) -> tuple[float | None, bool]:
    """Give one standard error of a difference of top-1, in points, and whether it is paired over the images.

    Paired it is that of Agresti and Min (2005, "Simple improved confidence intervals for comparing matched
    proportions"): half an image more is counted on which only the one is right, and half on which only the other is,
    and two images in all; so it is not 0 where the two are right on the same images.
    """
    if a.hits is not None and b.hits is not None:
        apart = np.asarray(a.hits, np.float64) - b.hits
        count = len(apart) + 2
        variance = (float(apart @ apart) + 1) / count - (float(apart.sum()) / count) ** 2
        return 100 * math.sqrt(variance / count), True
    if images is None:
        return None, False
    return math.hypot(standard_error(a.top1, images), standard_error(b.top1, images)), False


def sure(choice: Choice) -> str:
    """Say in plain words what decided, and how sure the choice is."""
    if choice.rival is None or choice.ahead is None:
        return "There was one setting, so nothing was chosen."
    on = "the held-out images" if choice.images is None else f"{_count(choice.images, 'held-out image')}"
    told = f"{len(choice.level)} of {choice.settings} settings are within one standard error of the best on {on}"
    if len(choice.level) == 1:
        told = f"On {on} no other of the {choice.settings} settings is within one standard error of the chosen one"
    place = "level with" if abs(choice.ahead) < 0.05 else f"{choice.ahead:+.1f} points from"
    told += f". The chosen one is {place} the next one in top-1"
    if choice.error is not None:
        how = "paired over the images" if choice.paired else "as if each had been measured on other images"
        told += f" (one standard error of that difference, {how}: {choice.error:.1f} points)"
    told += "."
    if len(choice.level) > 1:
        told += _decided(choice)
    if choice.needed is not None and choice.error is not None and choice.error > RESOLVED:
        told += f" At least {_round_up(choice.needed):,} held-out images would be needed to resolve 1 point."
    return told


def _decided(choice: Choice) -> str:
    if choice.loss_ahead is None or choice.loss_ahead <= 0:
        return " The held-out loss does not tell them apart either: the fewer parameters decided."
    error = "" if choice.loss_error is None else f" (one standard error of that difference: {choice.loss_error:.2g})"
    return (
        f" The accuracy cannot tell them apart, so the lowest held-out loss decided, by {choice.loss_ahead:.2g}{error}."
    )


def _order(settings: Sequence[Setting], images: int | None) -> list[Setting]:
    """Put what is level with the best first, the lowest loss ahead; then the others, the highest accuracy ahead."""
    level = _level(settings, images)
    others = [setting for setting in settings if setting not in level]
    return sorted(level, key=_by_loss) + sorted(others, key=_by_accuracy)


def _level(settings: Sequence[Setting], images: int | None) -> list[Setting]:
    if not settings:
        return []
    best = min(settings, key=_by_accuracy)
    return [
        own for own in settings if own is best or best.top1 - own.top1 <= (difference_error(best, own, images)[0] or 0)
    ]


def _by_accuracy(setting: Setting) -> tuple[float, float, int]:
    return -setting.top1, _loss(setting), setting.parameters


def _by_loss(setting: Setting) -> tuple[float, float, int]:
    return _loss(setting), -setting.top1, setting.parameters


def _loss(setting: Setting) -> float:
    return setting.loss if setting.loss is not None and math.isfinite(setting.loss) else math.inf


def _loss_error(a: Setting, b: Setting) -> float | None:
    if a.losses is None or b.losses is None or len(a.losses) < 2:
        return None
    apart = np.asarray(a.losses, np.float64) - b.losses
    return float(apart.std(ddof=1)) / math.sqrt(len(apart))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _round_up(number: int) -> int:
    """Two digits are enough of an estimate."""
    step = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step
