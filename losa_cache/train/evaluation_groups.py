"""Groups over which an evaluation reports means."""

import logging
import shlex
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.train.groups import groups_by_id, require_groups
from losa_cache.train.sample_files import names_file, parse_groups, read_sample_file

log = logging.getLogger(__name__)


def groups_to_report(
    asked: str | None,
    of_run: str | None,
    cache: ActivationCache | None,
    samples: NDArray[np.int64],
    ids: Sequence[str],
) -> NDArray[np.int64] | None:
    """Number the group of each evaluated sample, from 0.

    Args:
        asked: a target set of classes in the cache, or a CSV file: what the evaluation was given.
        of_run: the same of the run, which counts if nothing was given.
        cache: that is evaluated on, if there is one.
        samples: numbers of the samples.
        ids: theirs.

    Returns:
        numbers ``(N,)``; ``None``: there are no groups. Those of the run may be unknown here, which a warning says.

    Raises:
        UserError: for groups that were asked for and are not known.
    """
    named = asked or of_run
    if named is None:
        return None
    try:
        values = _numbers(named, cache, samples, ids)
    except UserError as error:
        if asked is not None:
            raise
        log.warning("the groups of the run are not known here, so the interval is over single samples: %s", error)
        return None
    numbers: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    return numbers


def _numbers(
    named: str, cache: ActivationCache | None, samples: NDArray[np.int64], ids: Sequence[str]
) -> NDArray[np.int64]:
    if cache is not None and named in cache.target_kinds:
        return require_groups(samples, cache.sample_ids, cache.target_set(named), named).values[samples]
    if not names_file(named):
        raise UserError(f"group-by is {named!r}, which is {_unknown(cache)}")
    groups = groups_by_id(ids, parse_groups(read_sample_file(named, "group-by"), named))
    return require_groups(np.arange(len(ids)), ids, groups, named).values


def _unknown(cache: ActivationCache | None) -> str:
    """Say that a name is no group's, and what to do."""
    if cache is None:
        return "no CSV file, and target sets are those of a cache: name a file with the heading id,group."
    place = str(cache.path)
    return (
        f"neither a target set of {place!r} nor a CSV file: add it with losa-cache targets {shlex.quote(place)} --from "
        "FILE, or name a file with the heading id,group."
    )
