"""Weights of classes in a loss."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError, nearest

BALANCED = "balanced"


def class_weights(
    asked: str | None, counts: NDArray[np.int64], names: Sequence[str], given: Mapping[str, float]
) -> list[float] | None:
    """Give a weight for each class, of which the mean over the training samples is 1.

    Args:
        asked: ``balanced``: each class weighs as much as every other, so its weight is N / (classes x its samples), as
            scikit-learn has it; a file's name: the weights are ``given``; ``None``: all are 1.
        counts: training samples, or pixels, of each class.
        names: of the classes.
        given: weights by name.

    Returns:
        the weights; ``None``: all are 1.

    Raises:
        UserError: for a class that is unknown or has no weight, for weights that are all 0, and for a class without
            training samples where classes are to be balanced.
    """
    if asked is None:
        return None
    if asked == BALANCED:
        if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
            raise UserError(
                f"class {missing[0]!r} has no training samples, so no weight balances it: add some, or leave out "
                "--class-weights."
            )
        return [float(weight) for weight in counts.sum() / (len(counts) * counts)]
    if unknown := [name for name in given if name not in names]:
        raise UserError(
            f"{asked!r} weighs the class {unknown[0]!r}, which the targets do not have: leave it out"
            f"{nearest(unknown[0], list(names))}."
        )
    if missing := [name for name in names if name not in given]:
        raise UserError(f"{asked!r} gives no weight for the class {missing[0]!r}: add it.")
    weights = np.array([given[name] for name in names])
    mean = float(weights @ counts) / max(1, int(counts.sum()))
    if not mean:
        raise UserError(f"{asked!r} weighs every class of the training samples 0: give one of them a weight.")
    return [float(weight) for weight in weights / mean]
