"""Read a target set from a file or a folder, for samples of which only the ids are known."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from losa_cache.errors import UserError
from losa_cache.folders import given_path
from losa_cache.targets.check import NAME
from losa_cache.targets.from_table import read_table
from losa_cache.targets.match import match
from losa_cache.targets.source import Progress, Source
from losa_cache.targets.target_set import DEPTH, LABELS, MASK, TargetSet
from losa_cache.tasks import get_task

if TYPE_CHECKING:
    from losa_cache.targets.frame import Frames

log = logging.getLogger(__name__)


def open_source(
    path: str | Path,
    *,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    ignore: int | None = None,
    selects: bool = True,
) -> Source:
    """Open what targets are read from; a table is read whole. Nothing here imports torch.

    Args:
        path: a table, or a folder of masks or depth maps.
        task: that learns the targets; ``None``: a folder holds masks, and the cells of a table say what they are.
        columns: of a table, to take; ``None``: all.
        ignore: a value of masks that stands for no class, besides 255.
        selects: whether the caller lets users name columns: messages say how.

    Raises:
        UserError: for what cannot be such a source.
    """
    place, kind = given_path(path), None if task is None else get_task(task).kind
    if ignore is not None and not 0 <= ignore <= 255:
        raise UserError(f"ignore is {ignore}: it must be a value of a mask, from 0 to 255.")
    if not place.exists():
        raise UserError(f"there is no file or folder {str(place)!r} to read targets from: name one.")
    if not place.is_dir():
        if ignore is not None:
            raise UserError(f"ignore is {ignore}, a value of masks, and {str(place)!r} is no folder: leave it out.")
        return read_table(place, kind=kind, task=task, columns=columns, selects=selects)
    if columns is not None:
        raise UserError(f"columns are those of a table, and {str(place)!r} is a folder: leave them out.")
    if kind not in (None, MASK, DEPTH):
        raise UserError(f"{str(place)!r} is a folder, and the task {task!r} takes a table: name one.")
    from losa_cache.targets.from_folder import read_folder

    return read_folder(place, kind=kind or MASK, ignored=ignore)


def read_targets(
    source: Source,
    ids: Sequence[str],
    *,
    name: str | None = None,
    wanted: Iterable[int] | None = None,
    subset: bool = False,
    frames: "Frames | None" = None,
    progress: Progress = lambda _: None,
) -> TargetSet:
    """Read the targets of samples.

    Args:
        source: of :func:`open_source`.
        ids: of the samples.
        name: of the target set; ``None``: as :func:`default_name` says.
        wanted: places of the samples that need a target; ``None``: all of them.
        subset: leave out targets of samples that are not among these. Otherwise they are refused.
        frames: the images of the samples, where ``source.framed``.
        progress: is called with the share that is read.

    Returns:
        the targets, in the order of the samples.

    Raises:
        UserError: for samples without targets, targets without samples, or a target that cannot be used.
    """
    matches = match(source.ids, ids, range(len(ids)) if wanted is None else wanted, source=source.path, subset=subset)
    name = default_name(source) if name is None else name
    count = int((matches.places >= 0).sum())
    log.info("target set %r of %r: %d samples, matched by their %s.", name, str(source.path), count, matches.rule)
    names, values = source.values(matches.places, frames, progress)
    return TargetSet(name, source.kind, names, values)


def default_name(source: Source) -> str:
    """Name a target set after its file or folder, or where that cannot be, after what it is."""
    stem = source.path.stem if source.path.is_file() else source.path.resolve().name
    return stem if stem != LABELS and NAME.fullmatch(stem) else source.kind
