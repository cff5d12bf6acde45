"""A table of images or videos, a row each: CSV, JSON lines or Parquet, with a column of paths.

Its classes and those of its target sets are those of the whole table, so that splits agree.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from losa_cache.data import video
from losa_cache.data.columns import IMAGE, LABEL, NAMES, SPLIT, WEIGHT, Columns
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, from_paths, size_of
from losa_cache.data.sources.folder import UNLABELLED, canonical, split_in
from losa_cache.data.spec import SourceSpec
from losa_cache.data.stems import files_by_stem, stem, with_suffixes
from losa_cache.data.target_columns import target_columns
from losa_cache.errors import UserError
from losa_cache.folders import given_path, is_url
from losa_cache.table_file import TableFile, forward_slashes, open_table
from losa_cache.targets.from_table import NUMBER, Table, class_names, read_column, require_no_decimal_commas
from losa_cache.text import few

SPEC = SourceSpec(prefix=True, suffixes=(".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"), columns=True)

log = logging.getLogger(__name__)

NAME = "table"
"""Name of the data set in identities, where the path of the table is of no importance."""
WHOLE = "train"
"""The split of a table that neither has a column of splits nor says its split in its name."""

_SHOWN, _LETTERS = 5, 100  # names in a message, letters of each


def load(request: Request) -> Samples:
    """Read the rows of a split. Their ids are their paths below the folder that holds them.

    Relative paths are below the folder of the request, or else that of the table. Absolute paths are followed wherever
    they lead, since the table is the user's own. Their ids are relative to the folder of the request or, where there is
    none or a path leads out of it, to the folder that all of them have in common. A path without a suffix is the only
    file of that name. A table without a column of splits is one split: that which its name says (``test.csv``), or
    ``train``. Without a column of labels all images are of one class, ``unlabelled``.

    Raises:
        UserError: for a table that cannot be read, columns that are not there or not clear, a split that it does not
            have, a cell that cannot be right, or files of which none is there.
    """
    table, roles, columns = _opened(request)
    split = canonical(request.split)
    rows = _rows(table, roles.get(SPLIT), split)
    base, paths = _paths(table, roles[IMAGE], request.folder)
    paths = with_suffixes(base, paths)
    _say_shared(table, paths, rows)
    ids = [paths[row] for row in rows]
    classes, labels = _labels(table, roles.get(LABEL), rows, targets=bool(request.columns.targets))
    sizes = [size_of(os.path.join(base, name)) for name in ids]
    _require_there(table, ids, sizes, base)
    videos = [name for name in ids if name.lower().endswith(video.EXTENSIONS)]
    if videos and len(videos) < len(ids):
        image = next(name for name in ids if not name.lower().endswith(video.EXTENSIONS))
        raise UserError(
            f"{str(table.path)!r} names videos ({videos[0]!r}) and images ({image!r}): keep one kind in it."
        )
    if videos:
        samples = video.from_videos(NAME, split, classes, base, list(zip(ids, labels, strict=True)), sizes)
    else:
        samples = from_paths(
            NAME, split, classes, base, ids, np.array(labels, dtype=np.int64), sizes, pixels=request.pixels
        )
    return replace(samples, targets=_targets(table, roles, columns, rows, ids))


def other_splits(request: Request) -> list[str]:
    """Name the splits that the table has beside that of the request."""
    table, roles, _ = _opened(request)
    if SPLIT not in roles:
        return []
    return sorted({canonical(cell) for cell in table.column(roles[SPLIT])} - {"", canonical(request.split)})


def _opened(request: Request) -> tuple[TableFile, dict[str, str], Columns]:
    """Open the table, and say which column has which role, and what of that the user said."""
    table = open_table(given_path(request.name))
    columns = request.columns.settled(NAMES)
    roles = dict(columns.roles)
    taken = {*roles.values(), *columns.targets}
    for role, names in NAMES.items():
        fitting = [name for name in table.names if name.lower() in names and name not in taken]
        if role not in roles and len(fitting) > 1:
            raise UserError(
                f"{str(table.path)!r} has the columns {few(fitting)}, each of which may be the {role}: say which is "
                f"it with --columns {role}={fitting[0]}."
            )
        if role not in roles and fitting:
            roles[role] = fitting[0]
    if IMAGE not in roles:
        raise UserError(
            f"{str(table.path)!r} has no column of images ({', '.join(NAMES[IMAGE])}): name it with --columns "
            f"{IMAGE}=COLUMN; it has {few(table.names)}."
        )
    if not len(table):
        raise UserError(f"{str(table.path)!r} holds no rows: it must have a heading and a line for each image.")
    return table, roles, columns


def _rows(table: TableFile, column: str | None, split: str) -> Sequence[int]:
    """Choose the rows of a split."""
    if column is None:
        whole = split_in(table.path.stem) or WHOLE
        if split != whole:
            raise UserError(
                f"{str(table.path)!r} has no column {SPLIT!r}, so it is {whole!r} as a whole and has no split "
                f"{split!r}: pass --split {whole}, add the column, or name a table for each split after it (test.csv)."
            )
        return range(len(table))
    splits = [canonical(cell) for cell in table.column(column)]
    if "" in splits:
        raise UserError(f"{table.where(splits.index(''))} has no split in column {column!r}: add it.")
    if rows := [row for row, own in enumerate(splits) if own == split]:
        return rows
    raise UserError(f"{str(table.path)!r} has no split {split!r}; it has: {', '.join(sorted({*splits})[:_SHOWN])}.")


def _paths(table: TableFile, column: str, folder: Path | None) -> tuple[Path, list[str]]:
    """Give the folder of all files, and their paths below it.

    Args:
        table: that names the files.
        column: of the table, with their paths.
        folder: that relative paths are below; ``None``: that of the table.
    """
    cells = forward_slashes(table.column(column))
    for row, cell in enumerate(cells):
        if problem := _problem(cell):
            raise UserError(f"{table.where(row)} {problem}.")
    paths = [os.path.normpath(cell) for cell in cells]
    absolute = [row for row, path in enumerate(paths) if os.path.isabs(path)]
    base = folder or table.path.parent
    top = os.path.abspath(base)
    outside = [row for row in absolute if not paths[row].startswith(os.path.join(top, ""))]
    if len(absolute) == len(paths) and (outside or folder is None):
        base = Path(top := os.path.commonpath({os.path.dirname(path) for path in paths}))
    elif outside:
        raise UserError(
            f"{table.where(outside[0])} names {cells[outside[0]]!r}, which is not below {str(base)!r}, and other lines "
            "have relative paths: write all paths in one way."
        )
    for row in absolute:
        paths[row] = os.path.relpath(paths[row], top)
    return base, paths


def _problem(cell: str) -> str:
    """Say why a cell is no path of a file; empty: it may be one."""
    if not cell:
        return "names no image: add its path, or leave the line out"
    if "\0" in cell:
        return f"names {cell!r}, which holds a zero byte: mend it"
    if is_url(cell):
        return f"names {cell!r}, a URL: download the images first"
    if ".." in cell.split("/"):
        return f"names {cell!r}, which may lead out of the folder of the images: write it without '..'"
    return ""


def _labels(table: TableFile, column: str | None, rows: Sequence[int], *, targets: bool) -> tuple[list[str], list[int]]:
    """Give the classes of the table, and the number of each row's class.

    Args:
        table: of the images.
        column: of the labels, if there is one.
        rows: of the split.
        targets: whether other columns were asked for: then labels are hardly missed.
    """
    if column is None:
        if len(table.names) > 1 and not targets:
            _say_unlabelled(str(table.path))
        return [UNLABELLED], [0] * len(rows)
    cells = table.column(column)
    known = {*cells} - {""}
    require_no_decimal_commas(sorted(known), column, table.path)
    fractions = [cell for cell in known if NUMBER.fullmatch(cell) and not float(cell).is_integer()]
    if fractions and all(map(NUMBER.fullmatch, known)):
        raise UserError(
            f"column {column!r} of {str(table.path)!r} holds {min(fractions)!r}, and classes are names or whole "
            f"numbers: pass --columns {column}:numbers, which makes it a target set."
        )
    if lacking := [row for row in rows if not cells[row]]:
        raise UserError(
            f"{table.where(lacking[0])} has no label in column {column!r}, the first of {len(lacking)} such: add it, "
            "or leave the line out."
        )
    classes = class_names(known, column, table.path)
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[cells[row]] for row in rows]


@lru_cache(64)
def _say_unlabelled(path: str) -> None:
    """Warn that a table has no labels, once for all its splits."""
    log.warning(
        "%r has no column of labels (%s), so all its images are %r: name it with --columns label=COLUMN.",
        *(path, ", ".join(NAMES[LABEL]), UNLABELLED),
    )


def _targets(
    table: TableFile, roles: dict[str, str], columns: Columns, rows: Sequence[int], ids: Sequence[str]
) -> dict[str, Table]:
    targets = {}
    for name, each in target_columns(roles, columns.targets).items():
        try:
            targets[name] = read_column(table, each.column, rows, ids, kind=each.kind)
            if name == WEIGHT:
                _require_weights(table, each.column, targets[name])
        except UserError as error:
            if each.column in (*columns.roles.values(), *columns.targets):
                raise  # the user named it; another one may have such a name by chance
            log.warning("column %r is no target set of the cache: %s", each.column, error)
            targets.pop(name, None)
    return targets


def _require_weights(table: TableFile, column: str, weights: Table) -> None:
    if (weights.entries < 0).any():
        raise UserError(f"column {column!r} of {str(table.path)!r} holds a weight below 0: mend it.")


def _say_shared(table: TableFile, paths: Sequence[str], rows: Sequence[int]) -> None:
    """Warn of images that another split has, too."""
    if len(rows) == len(paths):
        return
    own = {paths[row] for row in rows}
    chosen = set(rows)
    if shared := [path for row, path in enumerate(paths) if row not in chosen and path in own]:
        log.warning("%d images of %r are in another split, too: %s.", len(shared), str(table.path), few(sorted(shared)))


def _require_there(table: TableFile, ids: Sequence[str], sizes: Sequence[int], base: Path) -> None:
    missing = [name for name, size in zip(ids, sizes, strict=True) if size < 0]
    if len(missing) == len(ids):
        folder, name = os.path.split(missing[0])
        alike = files_by_stem(base / folder).get(stem(name), [])
        there = f" (there is {alike[0][:_LETTERS]!r})" if alike else ""
        raise UserError(
            f"none of the {len(ids)} files that {str(table.path)!r} names is below {str(base)!r}, the first "
            f"{missing[0]!r}{there}: "
            + ("write the names as the files have them." if alike else "--data-dir names their folder.")
        )
    if missing:
        log.warning("%d of %d files of %r are not there: %s.", len(missing), len(ids), str(table.path), few(missing))
