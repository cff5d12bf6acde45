"""Target sets of other data in the names of a run: classes, labels and columns are matched by name, never by position.
Pure.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from losa_cache.errors import UserError
from losa_cache.targets.target_set import CLASS, DEPTH, IGNORED, MASK, MULTILABEL, NUMBERS, UNKNOWN, TargetSet

log = logging.getLogger(__name__)

SHOWN = 5  # names in a message


def unmatched(kind: str, ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Say which names of other data keep a run from being judged by them; empty: none.

    Classes and labels that the run does not know do. Those that other data lack do not: no sample is of them. Of
    columns of numbers, each must be there.

    Args:
        kind: of both target sets.
        ours: names that the run knows.
        theirs: names of the other data.
    """
    if kind == DEPTH:
        return ""
    known, there = set(ours), set(theirs)
    unknown = [name for name in theirs if name not in known]
    lacking = [name for name in ours if name not in there] if kind == NUMBERS else []
    told = [f"the run knows no {_named(unknown)}{_numbered(ours, unknown)}"] if unknown else []
    return ", and ".join([*told, f"the other has no {_named(lacking)}"] if lacking else told)


def aligned(targets: TargetSet, names: Sequence[str], place: str) -> TargetSet:
    """Give a target set in the names of a run, in their order.

    Args:
        targets: of other data.
        names: of the run.
        place: names the other data, for messages.

    Raises:
        UserError: for names that the run does not know, or columns that are missing.
    """
    theirs = list(targets.names)
    if theirs == list(names) or targets.kind == DEPTH:
        return targets
    if problem := unmatched(targets.kind, names, theirs):
        raise UserError(f"the target set {targets.name!r} of {place} cannot judge the run: {problem}.")
    if missing := [name for name in names if name not in set(theirs)]:
        log.info("%s has no %s, which the run knows.", place, _named(missing))
    return renumbered(targets, names)


def renumbered(targets: TargetSet, names: Sequence[str]) -> TargetSet:
    """Give a target set in other names, in their order, which hold all of its own.

    Labels that are new are unknown for every sample; columns of numbers are the same, in another order. Depth has no
    names to match.
    """
    theirs = list(targets.names)
    if targets.kind == DEPTH:
        return targets
    values, to = targets.values, {name: number for number, name in enumerate(names)}
    numbers = np.array([to[name] for name in theirs])
    if targets.kind == CLASS:
        values = np.append(numbers, UNKNOWN)[values]  # UNKNOWN is the last place, too
    elif targets.kind == MASK:
        table = np.full(IGNORED + 1, IGNORED, dtype=values.dtype)
        table[: len(numbers)] = numbers
        values = table[values]
    elif targets.kind == MULTILABEL:
        values = np.full((len(values), len(names)), UNKNOWN, dtype=values.dtype)
        values[:, numbers] = targets.values
    else:
        values = values[:, [theirs.index(name) for name in names]]
    return replace(targets, names=list(names), values=values)


def _numbered(ours: Sequence[str], unknown: Sequence[str]) -> str:
    """Say what to do where other data number what a run knows by names; empty: they do not."""
    if not all(map(str.isdecimal, unknown)) or any(map(str.isdecimal, ours)):
        return ""
    return (
        ", which are numbers in place of names: name the classes where these data are extracted, such as in "
        "classnames.txt beside the shards of a WebDataset"
    )


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:SHOWN]))
    return f"{listed} and {len(names) - SHOWN} more" if len(names) > SHOWN else listed
