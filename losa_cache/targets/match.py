"""Which target belongs to which sample, by their ids. Pure.

A table or a folder need not name samples as the cache does: a spreadsheet may say ``train/cat/1.jpg`` where the cache
says ``cat/1.jpg``, and the mask of ``cat/1.jpg`` is ``1.png``. The rules below are tried in turn. The first one by
which every sample has its target is used for all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError

Rule = Callable[[Sequence[str], Sequence[str]], list[int]]
"""Ids of targets, and of samples, to the place of each target's sample; -1: it has none."""


@dataclass(frozen=True)
class Matches:
    """Targets and samples that belong together.

    Attributes:
        places: the place of each sample's target, ``(samples,)``; -1 for a sample that needs none and has none.
        rule: by what they were matched, in words.
        left: targets of no sample.
    """

    places: NDArray[np.int64]
    rule: str
    left: int


def match(given: Sequence[str], ids: Sequence[str], wanted: Iterable[int], *, source: object, subset: bool) -> Matches:
    """Match targets with samples.

    Args:
        given: ids of the targets.
        ids: those of the samples.
        wanted: places of the samples that must have a target; the others were skipped.
        source: where the targets are from, for messages.
        subset: whether targets of no sample are left out. Otherwise they are refused.

    Raises:
        UserError: for a sample without a target, two targets of one sample, or targets of no sample.
    """
    needed = np.fromiter(wanted, dtype=np.int64)
    tried = []
    for name, rule in RULES.items():
        found = np.array(rule(given, ids), dtype=np.int64).reshape(-1)
        there = np.zeros(len(ids), dtype=bool)
        there[found[found >= 0]] = True
        tried.append((int(there[needed].sum()), name, found))
        if there[needed].all():
            break
    covered, name, found = max(tried, key=lambda one: one[0])  # of equals the first: the strictest rule
    if covered < len(needed):
        lacking = needed[~np.isin(needed, found)]
        raise UserError(
            f"{len(lacking)} of {len(needed)} samples have no target in {str(source)!r}, the first of them "
            f"{ids[lacking[0]]!r}: add them, or name the samples by their ids, which are such."
        )
    places = _places(given, ids, found, name, source)
    unknown = np.flatnonzero(found < 0)
    if len(unknown) and not subset:
        raise UserError(
            f"{str(source)!r} holds targets of {len(unknown)} samples that are not here, the first of them "
            f"{given[unknown[0]]!r}: pass --subset to take only those of the samples here."
        )
    return Matches(places, name, len(unknown))


def _places(
    given: Sequence[str], ids: Sequence[str], found: NDArray[np.int64], rule: str, source: object
) -> NDArray[np.int64]:
    """Give the place of each sample's target, and refuse two targets of one sample."""
    targets = np.flatnonzero(found >= 0)
    places = np.full(len(ids), -1, dtype=np.int64)
    places[found[targets[::-1]]] = targets[::-1]  # the first of several
    again = targets[places[found[targets]] != targets]
    if len(again):
        sample = found[again[0]]
        raise UserError(
            f"{given[places[sample]]!r} and {given[again[0]]!r} of {str(source)!r} are both the sample {ids[sample]!r} "
            f"by their {rule}, and so on for {len(again)} targets: name samples by their ids."
        )
    return places


def _whole(given: Sequence[str], ids: Sequence[str]) -> list[int]:
    known = {name: place for place, name in enumerate(ids)}
    return [known.get(name, -1) for name in given]


def _ends(given: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Match paths of which one is the end of the other."""
    whole = {name: place for place, name in enumerate(ids)}
    ends = _unique((end, place) for place, name in enumerate(ids) for end in _ends_of(name))
    return [next((whole[end] for end in _ends_of(name) if end in whole), ends.get(_plain(name), -1)) for name in given]


def _by(key: Callable[[str], str]) -> Rule:
    def rule(given: Sequence[str], ids: Sequence[str]) -> list[int]:
        known = _unique((key(name), place) for place, name in enumerate(ids))
        return [known.get(key(name), -1) for name in given]

    return rule


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Give what names one place alone."""
    found: dict[str, int] = {}
    for name, place in pairs:
        found[name] = place if found.get(name, place) == place else -1
    return found


def _plain(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _ends_of(path: str) -> list[str]:
    """Give the ends of a path, the longest first."""
    parts = _plain(path).split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


RULES: dict[str, Rule] = {
    "ids": _whole,
    "paths' ends": _ends,
    "file names": _by(lambda name: PurePosixPath(_plain(name)).name),
    "file names without suffix": _by(lambda name: PurePosixPath(_plain(name)).stem),
}
"""By what targets and samples are matched: the strictest comes first."""
