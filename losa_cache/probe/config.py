"""The options of ``probe``."""

from dataclasses import dataclass
from typing import Annotated

from losa_cache.options import Option


@dataclass(frozen=True)
class ProbeConfig:
    """Which images a probe is fitted to, and which it is tuned on.

    Attributes:
        targets: name of the target set of classes that is learned; by default the cache's labels.
        val_fraction, val_ids, group_by, limit: what is held out, and how many others are fitted, as of
            ``losa_cache.train``.
        seed: of the folds.
    """

    targets: Annotated[
        str | None, Option("Target set of classes in the cache to learn; default: the cache's labels.")
    ] = None
    val_fraction: Annotated[
        float,
        Option(
            "Share of the images held out, on which the regularisation (C, alpha) and the number of neighbours k are "
            "chosen."
        ),
    ] = 0.1
    val_ids: Annotated[str | None, Option("File of ids, one a line: hold out exactly these images.", path=True)] = None
    group_by: Annotated[
        str | None,
        Option(
            "Groups of which all images are held out or none: a target set of classes in the cache, or a CSV file "
            "with the heading id,group.",
            path=True,
        ),
    ] = None
    limit: Annotated[
        int | None, Option("Fit only this many images; the held-out images stay the same. Default: all.")
    ] = None
    seed: Annotated[int, Option("Seed of the split into folds, if C, alpha and k are chosen by cross-validation.")] = 0
