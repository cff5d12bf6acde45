"""What held-out images can tell: how many a choice takes, and how exact a top-1 on so many is. Pure.

*Not from the paper.*
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError

LEAST = 5
"""Held-out images that a choice takes. With fewer not even a setting that is right on all of them is ahead of one that
is wrong on all of them by more than chance (sign test: 2 to the power of -5 is 3 %)."""
ENOUGH = 500
"""Held-out images that do: of two settings that disagree on one image in twenty, which is usual for rates and decays of
one method, the difference then has a standard error of 1 point: sqrt(0.05 / 500)."""


def require_choosable(labels: NDArray[np.int64], classes: Sequence[str], remedy: str) -> None:
    """Refuse held-out images on which no choice can be made.

    Args:
        labels: of the held-out images.
        classes: their names.
        remedy: what to do, as the end of a sentence.

    Raises:
        UserError: for too few images, or images of one class.
    """
    if len(labels) < LEAST:
        images = f"{len(labels)} image{'' if len(labels) == 1 else 's'}"
        raise UserError(
            f"{images} held out cannot tell settings apart: a choice takes at least {LEAST}, and about {ENOUGH} to be "
            f"sure of 1 point; {remedy}."
        )
    if len(found := np.unique(labels)) == 1:
        raise UserError(
            f"all {len(labels)} held-out images are of class {classes[int(found[0])]!r}, on which every setting may be "
            f"right: a choice takes images of at least two classes; {remedy}."
        )


def standard_error(top1: float, samples: int) -> float:
    """Standard error of a top-1 measured on so many samples, in points (Agresti and Coull's, finite at 0 and 100 %)."""
    share = (top1 / 100 * samples + 2) / (samples + 4)
    return 100 * math.sqrt(share * (1 - share) / (samples + 4))
