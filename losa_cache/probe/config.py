"""The options of ``probe``."""

from dataclasses import dataclass
from typing import Annotated

from losa_cache.options import Option


@dataclass(frozen=True)
class ProbeConfig:
    """Which images a probe is fitted to, and which it is tuned on.

    Attributes:
        val_fraction, val_ids, limit: what is held out, and how many others are fitted, as of ``losa_cache.train``.
        seed: of the folds.
    """

    val_fraction: Annotated[float, Option("Share of the images held out, to choose C and k by.")] = 0.1
    val_ids: Annotated[str | None, Option("Hold out the ids of this file, one a line.", path=True)] = None
    limit: Annotated[int | None, Option("Fit this many images, beside the held-out ones.")] = None
    seed: Annotated[int, Option("Seed of the folds of a cross-validation.")] = 0
