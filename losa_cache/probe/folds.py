"""Divisions of samples into parts that are fitted and parts that are held out, on which regularisation is chosen."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Folds:
    """Pairs of a part that is fitted and a part that is held out, as places among the samples.

    Attributes:
        parts: the pairs, each int64.
        told: what they are, in words.
    """

    parts: list[tuple[Tensor, Tensor]]
    told: str


def held_out_fold(train: int, held_out: int) -> Folds:
    """Give one pair: so many training samples, followed by the held-out ones."""
    places = torch.arange(train + held_out)
    return Folds([(places[:train], places[train:])], f"{held_out} held-out images")


def cross_validation(
    labels: NDArray[np.int64], *, seed: int, folds: int = FOLDS, groups: NDArray[np.int64] | None = None
) -> Folds:
    """Divide all samples into folds at random, by the seed; the samples of each class are spread evenly, to one
    sample.

    Args:
        labels: class of each sample.
        seed: of the order.
        folds: how many, if there are so many samples.
        groups: group of each sample: all of a group are in one fold, and classes are spread as evenly as that allows;
            one group cannot be divided, so its samples are.
    """
    if groups is not None and len(np.unique(groups)) > 1:
        dealt = _dealt_by_group(labels, groups, seed=seed, folds=folds)
    else:
        count, rng = min(folds, len(labels)), np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        dealt = np.empty(len(labels), np.int64)
        dealt[order] = np.arange(len(labels)) % count
    count = int(dealt.max()) + 1
    pairs = [(np.flatnonzero(dealt != fold), np.flatnonzero(dealt == fold)) for fold in range(count)]
    return Folds(
        [(torch.from_numpy(ours), torch.from_numpy(theirs)) for ours, theirs in pairs],
        f"cross-validation over {count} folds of all {len(labels)} training images",
    )


def _dealt_by_group(
    labels: NDArray[np.int64], groups: NDArray[np.int64], *, seed: int, folds: int
) -> NDArray[np.int64]:
    """Give the fold of each sample: the largest groups first, each to the fold that has the fewest of its classes."""
    names, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    own = np.zeros((len(names), int(labels.max()) + 1), np.int64)
    np.add.at(own, (which, labels), 1)
    there = np.zeros((min(folds, len(names)), own.shape[1]), np.int64)
    fold_of = np.empty(len(names), np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold = min(range(len(there)), key=lambda place: (int(there[place] @ own[group]), int(there[place].sum())))
        fold_of[group] = fold
        there[fold] += own[group]
    return fold_of[which]
