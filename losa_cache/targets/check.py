"""What a target set must be, wherever it comes from: a file, a caller, or a cache that anybody may have written."""

import re
from collections.abc import Sequence

import numpy as np

from losa_cache.errors import UserError
from losa_cache.outside import require
from losa_cache.targets.target_set import (
    CLASS,
    DEPTH,
    DIMENSIONS,
    DTYPES,
    IGNORED,
    LABELS,
    MASK,
    MULTILABEL,
    NUMBERS,
    UNKNOWN,
    TargetSet,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
OTHERS = re.compile(r"[^A-Za-z0-9_-]+")
DEPTH_NAMES = ["depth"]


def require_name(name: str) -> None:
    """Check the name of a target set: it names a folder of the cache.

    Raises:
        ValueError: if it is none.
    """
    require(name != LABELS, f"{LABELS!r} is the name of the cache's own labels")
    require(
        NAME.fullmatch(name) is not None,
        f"{name[:80]!r} is no name of a target set, which is of 1 to 64 ASCII letters, digits, - and _, no sign first",
    )


def target_name(column: str) -> str:
    """Give the name of a target set that is called after a column of a table: other letters become ``_``.

    Raises:
        UserError: if nothing is left.
    """
    name = OTHERS.sub("_", column).strip("_-")[:64]
    try:
        require_name(name)
    except ValueError as error:
        raise UserError(f"column {column!r} cannot be called so as a target set ({error}): rename it.") from error
    return name


def require_names(kind: str, names: Sequence[str]) -> None:
    """Check the names of classes, labels or columns.

    Raises:
        ValueError: if there are none, one is there twice, or a mask has too many classes.
    """
    require(bool(names), "there are no names of classes, labels or columns")
    seen: set[str] = set()
    for name in names:
        require(name not in seen, f"the name {name[:80]!r} is there twice")
        seen.add(name)
    require(
        kind != MASK or len(names) <= IGNORED, f"a mask has {len(names)} classes, and at most {IGNORED} are possible"
    )
    require(kind != DEPTH or list(names) == DEPTH_NAMES, f"depth has the names {list(names)[:3]}")


def require_values(targets: TargetSet, samples: int) -> None:
    """Check type, shape and values.

    Args:
        targets: of a known kind, with names that :func:`require_names` accepts.
        samples: how many there must be.

    Raises:
        ValueError: if they are not as :class:`TargetSet` says.
    """
    kind, names, values = targets.kind, targets.names, targets.values
    require(str(values.dtype) == DTYPES[kind], f"values are {values.dtype}, of kind {kind!r} they are {DTYPES[kind]}")
    columns = kind in (MULTILABEL, NUMBERS)
    fits = values.ndim == DIMENSIONS[kind] and len(values) == samples and (not columns or values.shape[1] == len(names))
    require(fits, f"values are of shape {values.shape}, for {samples} samples and {len(names)} names")
    if not values.size:
        return
    if kind == DEPTH:
        known = values[~np.isnan(values)]
        require(bool((known > 0).all() and np.isfinite(known).all()), "a depth is not above 0 and finite")
    elif kind == NUMBERS:
        require(bool(np.isfinite(values).all()), "a number is not finite")
    else:
        least, most = (0 if kind == MASK else UNKNOWN), (1 if kind == MULTILABEL else len(names) - 1)
        known = values[values != IGNORED] if kind == MASK else values
        low, high = (int(known.min()), int(known.max())) if known.size else (least, most)
        require(least <= low and high <= most, f"values go from {low} to {high}, and may go from {least} to {most}")


def checked_shape(kind: str, samples: int, names: int, size: Sequence[int]) -> tuple[int, ...]:
    """Give the shape that the values of a cache's target set must have.

    Args:
        kind: of the target set.
        samples: of the cache.
        names: how many names it has.
        size: height and width of the backbone's input.
    """
    behind = {CLASS: (), MULTILABEL: (names,), NUMBERS: (names,), MASK: tuple(size), DEPTH: tuple(size)}
    return (samples, *behind[kind])
