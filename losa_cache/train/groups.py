"""Groups of samples, such as those of a patient: all of a group are held out, or none. Pure.

Groups are a target set of the kind ``class``, whose classes are the groups.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.target_set import CLASS, MULTILABEL, TargetSet
from losa_cache.train.sampler import hold_out

GROUPS = "groups"


def groups_by_id(ids: Sequence[str], given: Mapping[str, str]) -> TargetSet:
    """Number the groups that a file gives.

    Args:
        ids: of all samples.
        given: name of the group by id; a file for several splits of a data set may name other ids, too.

    Returns:
        groups in alphabetical order; -1 where a sample has none.
    """
    names = sorted({given[own] for own in ids if own in given})
    numbers = {name: number for number, name in enumerate(names)}
    values = [numbers[given[own]] if own in given else -1 for own in ids]
    return TargetSet(GROUPS, CLASS, names, np.array(values, np.int64))


def require_groups(samples: NDArray[np.int64], ids: Sequence[str], groups: TargetSet, asked: str) -> TargetSet:
    """Refuse samples without a group.

    Args:
        samples: their numbers.
        ids, groups: of all samples.
        asked: value of the option that names the groups.

    Raises:
        UserError: naming the first one, or if the target set is not one of classes.
    """
    if groups.kind != CLASS:
        raise UserError(
            f"group-by is {asked!r}, a target set of the kind {groups.kind!r}: groups are the classes of one of the "
            f"kind {CLASS!r}, or a CSV file with the heading id,group."
        )
    if len(missing := samples[groups.values[samples] < 0]):
        raise UserError(
            f"group-by {asked!r} gives no group to {len(missing)} of the samples, the first {ids[missing[0]]!r}: add a "
            "line for each."
        )
    return groups


def hold_out_groups(
    samples: NDArray[np.int64], groups: TargetSet, fraction: float, fold: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples by a hash of the names of their groups.

    Args:
        samples: their numbers, each of a sample with a group.
        groups: of all samples.
        fraction: held-out share of the groups, 0 <= fraction < 1.
        fold: as of :func:`losa_cache.train.sampler.hold_out`.

    Raises:
        UserError: for another fraction, or one that leaves a part empty.
    """
    own = groups.values[samples]
    _, chosen = hold_out(np.unique(own), groups.names, fraction, fold, what=GROUPS)
    held = np.isin(own, chosen)
    return np.sort(samples[~held]), np.sort(samples[held])


def require_apart(train: NDArray[np.int64], held_out: NDArray[np.int64], groups: TargetSet) -> None:
    """Refuse a split that has samples of one group on both sides.

    Raises:
        UserError: naming the first such group.
    """
    if len(torn := np.intersect1d(groups.values[train], groups.values[held_out])):
        raise UserError(
            f"val-ids holds out some of the samples of {len(torn)} groups, the first {groups.names[torn[0]]!r}, and "
            "leaves others: hold out all of a group, or leave out --group-by."
        )


def require_every_class(
    train: NDArray[np.int64], held_out: NDArray[np.int64], targets: TargetSet, *, several: bool = False
) -> None:
    """Refuse a split by groups that leaves a class, or a label, out of a part.

    Args:
        train, held_out: numbers of the samples of each part.
        targets: of all samples; those that are neither classes nor labels pass.
        several: whether other splits hold out others: then what this one holds out need not have every class.

    Raises:
        UserError: naming the first class.
    """
    if targets.kind not in (CLASS, MULTILABEL):
        return
    there = _present(targets, np.concatenate([train, held_out]))
    for name, part in {"training": train, "held-out": held_out}.items():
        if (missing := sorted(there - _present(targets, part))) and not (several and part is held_out):
            raise UserError(
                f"split by groups, the {name} part has no sample of class {targets.names[missing[0]]!r}: choose "
                "another --val-fraction, name what is held out with --val-ids, or leave out --group-by."
            )


def _present(targets: TargetSet, samples: NDArray[np.int64]) -> set[int]:
    """Number the classes that some sample is of, or the labels that some sample has."""
    values = targets.values[samples]
    numbers = np.unique(values[values >= 0]) if targets.kind == CLASS else np.flatnonzero((values == 1).any(0))
    return set(numbers.tolist())
