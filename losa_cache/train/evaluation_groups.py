"""Groups over which an evaluation reports means."""

import logging
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.targets.target_set import CLASS
from losa_cache.train.groups import groups_by_id
from losa_cache.train.sample_files import parse_groups, read_sample_file

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
        log.warning("no means over groups are reported: %s", error)
        return None
    numbers: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    return numbers


def _numbers(
    named: str, cache: ActivationCache | None, samples: NDArray[np.int64], ids: Sequence[str]
) -> NDArray[np.int64]:
    if cache is not None and named in cache.target_kinds:
        groups = cache.target_set(named)
        if groups.kind != CLASS:
            raise UserError(f"group-by is {named!r}, a target set of the kind {groups.kind!r}: name one of classes.")
        values: NDArray[np.int64] = groups.values[samples]
    elif os.path.lexists(named):
        values = groups_by_id(ids, parse_groups(read_sample_file(named, "group-by"), named)).values
    else:
        raise UserError(
            f"group-by is {named!r}, which is neither a target set of what is evaluated nor a CSV file: name one of "
            "them."
        )
    if len(missing := np.flatnonzero(values < 0)):
        raise UserError(
            f"group-by {named!r} gives no group to {len(missing)} of the samples, the first {ids[missing[0]]!r}: add a "
            "line for each."
        )
    return values
