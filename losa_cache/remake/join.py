"""What a merge makes of several caches: whether they belong together, classes by name, target sets. Pure."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.identity import differences, identity_hash
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.remake.change import begun, largest_error
from losa_cache.remake.origin import Origin
from losa_cache.targets.align import renumbered
from losa_cache.targets.check import require_names
from losa_cache.targets.target_set import CLASS, LABELS, NUMBERS, TargetSet
from losa_cache.text import few

log = logging.getLogger(__name__)

FREE = ("dataset", "sampling", "made_from")
"""Fields in which the caches may differ: they say which samples there are."""
SIDES = ("in the first", "in this")


def require_alike(first: Manifest, other: Manifest, place: str) -> None:
    """Refuse a cache that differs from the first in more than its samples.

    Args:
        first: of the first cache.
        other: of the other.
        place: of the other, for messages.

    Raises:
        UserError: naming the fields.
    """
    ours, theirs = ({k: v for k, v in one.fields.items() if k not in FREE} for one in (first, other))
    wrong = differences(ours, theirs, SIDES)
    if first.fields["views"]["augment"] is not None:  # views are drawn by the seed
        ours, theirs = ({"seed": one.fields["sampling"]["seed"]} for one in (first, other))
        wrong += differences(ours, theirs, SIDES)
    if wrong:
        raise UserError(
            f"cache {place!r} cannot be merged with the first, because it differs in {'; '.join(wrong)}: only samples "
            "may differ."
        )


def require_disjoint(caches: Sequence[ActivationCache]) -> None:
    """Refuse caches that share samples, or one that has an id twice.

    Raises:
        UserError: naming up to five of them.
    """
    for cache in caches:
        if again := _twice(cache.sample_ids):
            raise UserError(
                f"cache {str(cache.path)!r} itself has ids more than once ({few(again)}): ids tell samples apart, so "
                "extract it again with unique ones."
            )
    if twice := _twice(name for cache in caches for name in cache.sample_ids):
        raise UserError(
            f"{len(twice)} samples are in more than one of the caches ({few(twice)}): a merged cache holds each once, "
            "so extract or name caches of disjoint samples."
        )


def _twice(ids: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(ids).items() if count > 1]


def joined_manifest(caches: Sequence[ActivationCache], classes: Sequence[str]) -> Manifest:
    """Give the manifest of the merged cache, without shards yet.

    The name and the split of its data set are those of all caches, and its identity names theirs.
    """
    sources = [cache.manifest for cache in caches]
    first, sets = sources[0], [one.fields["dataset"] for one in sources]
    dataset = {name: "+".join(dict.fromkeys(own[name] for own in sets)) for name in ("name", "split")}
    dataset["fingerprint"] = identity_hash({"merged": [own["fingerprint"] for own in sets]})
    sampling = {"seed": first.fields["sampling"]["seed"], "limit": None}
    identities = [one.identity for one in sources]
    fields: dict[str, Any] = {"dataset": dataset, "sampling": sampling, "made_from": identities}
    manifest = begun(first, first.fields | fields, sources)
    error = first.encoding["error"]
    for other in sources[1:]:
        error = largest_error(error, other.encoding["error"])
    encoding = first.encoding | {"error": error}
    return replace(manifest, classes=list(classes), encoding=encoding, options=None)  # of several data sets


def joined_names(sets: Iterable[Sequence[str]]) -> list[str]:
    """Give the names of all, each once: those of the first in their order, then what the others add."""
    return list(dict.fromkeys(name for names in sets for name in names))


def joined_rows(parts: Sequence[NDArray[Any]], origin: Origin) -> NDArray[Any]:
    """Give an array of the merged rows, from one of each cache's rows."""
    found = np.empty((len(origin.row), *parts[0].shape[1:]), parts[0].dtype)
    for number, part in enumerate(parts):
        mine = origin.part == number
        found[mine] = part[origin.row[mine]]
    return found


def joined_targets(caches: Sequence[ActivationCache], name: str, names: Sequence[str], origin: Origin) -> TargetSet:
    """Give a target set of the merged samples, in these names.

    Args:
        caches: that all have it.
        name: of the target set.
        names: that hold those of every cache.
        origin: of each sample.
    """
    own = [renumbered(cache.target_set(name), names) for cache in caches]
    return TargetSet(name, own[0].kind, list(names), joined_rows([one.values for one in own], origin))


def common_targets(caches: Sequence[ActivationCache]) -> dict[str, list[str]]:
    """Give the names of each target set that all caches have and that can be merged; a warning tells of the others."""
    found: dict[str, list[str]] = {}
    for name in joined_names([list(cache.manifest.targets) for cache in caches]):
        declared = [cache.manifest.targets.get(name) for cache in caches]
        there = [one for one in declared if one is not None]
        names = joined_names([one["names"] for one in there])
        if len(there) < len(caches):
            reason = "not every cache has it"
        elif len({one["kind"] for one in there}) > 1:
            reason = "it is of another kind in one of the caches"
        elif there[0]["kind"] == NUMBERS and any(set(one["names"]) != set(names) for one in there):
            reason = "its columns are others in one of the caches"
        elif problem := _unnameable(there[0]["kind"], names):
            reason = problem
        else:
            found[name] = names
            continue
        log.warning("the target set %r is left out, because %s.", name, reason)
    return found


def _unnameable(kind: str, names: Sequence[str]) -> str:
    """Say why no target set can have all of these names; empty: one can."""
    try:
        require_names(kind, names)
    except ValueError as error:
        return f"of all caches together {error}"
    return ""


def joined_labels(caches: Sequence[ActivationCache], classes: Sequence[str], origin: Origin) -> NDArray[np.int64]:
    """Give the label of each merged row, -1 where its sample was skipped."""
    own = [TargetSet(LABELS, CLASS, cache.manifest.classes, cache.labels) for cache in caches]
    return joined_rows([renumbered(one, classes).values.astype(np.int64) for one in own], origin)
