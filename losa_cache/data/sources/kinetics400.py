"""Kinetics-400 in the layouts in which it is distributed."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

from losa_cache.data.label_files import read_lines
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples
from losa_cache.data.sources import folder
from losa_cache.data.sources.folder import SPLITS, find, split_folder
from losa_cache.data.spec import SourceSpec
from losa_cache.data.video import EXTENSIONS, from_videos
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError

SPEC = SourceSpec(needs_folder=True)

NAME, CLASSES = "kinetics400", 400

_LISTS = ("{}.csv", "kinetics400_{}.csv", "kinetics-400_{}.csv", "{}.txt", "kinetics400_{}_list_videos.txt")
_LINE = re.compile(rf"(.+(?:{'|'.join(map(re.escape, EXTENSIONS))}))[ \t,]+(\S.*)", re.IGNORECASE)
_YOUTUBE_ID = re.compile(r"[\w-]+", re.ASCII)

Entries = list[tuple[str, str]]
"""Paths of videos, as a list gives them, and labels."""


def load(request: Request) -> Samples:
    """Read a split from its list or, if there is no list, from ``<root>/<split>/<class>/*``.

    A list lies in the folder, or in ``annotations`` below it, and has a name such as ``train.csv`` or ``val.txt``. It
    has

    * columns ``label,youtube_id,time_start,time_end``: each row is a file ``{youtube_id}_{start:06}_{end:06}.mp4``;
    * or lines ``path label``, the label a number below 400 or a name.

    A file is searched at its path below the split's folder or below the root, then by its name anywhere in the split's
    folder (if there is none, in the root). A missing file stays among the samples, and does not decode. Named classes
    are numbered in sorted order over the lists of training, validation and this split, so that all splits agree.

    Raises:
        UserError: for a list that does not parse or leads out of the folder, or files that are not as expected.
    """
    root, split = request.root, request.split
    lists = {key: path for key in ("train", "val", split) if (path := _list_of(root, key)) is not None}
    if split not in lists:
        return folder.load(request, name=NAME)
    entries = {key: _read(path, root) for key, path in lists.items()}
    labels = {label for listed in entries.values() for _, label in listed}
    numbered = all(label.isdecimal() for label in labels)
    if numbered and (top := max(map(int, labels))) >= CLASSES:
        raise UserError(f"the lists in {str(root)!r} number a class {top}: Kinetics-400's are 0 to {CLASSES - 1}.")
    classes = [str(number) for number in range(CLASSES)] if numbered else sorted(labels)
    numbers = {label: number for number, label in enumerate(classes)}
    locate = _locator(root, split_folder(root, split) or root)
    files = [(locate(path), numbers[str(int(label)) if numbered else label]) for path, label in entries[split]]
    return from_videos(NAME, split, classes, root, files)


def other_splits(request: Request) -> list[str]:
    """List the other splits that have a list or a folder.

    Raises:
        UserError: if the root cannot be read.
    """
    root, split = request.root, folder.canonical(request.split)
    return [key for key in SPLITS if key != split and (_list_of(root, key) or split_folder(root, key))]


def _list_of(root: Path, split: str) -> Path | None:
    names = [kind.format(name) for name in SPLITS.get(split, (split,)) for kind in _LISTS]
    paths = [folder / name for folder in (root, root / "annotations") for name in names]
    return next((path for path in paths if path.is_file()), None)


def _locator(root: Path, folder: Path) -> Callable[[str], str]:
    """List a folder once, and give a function that says where below the root a listed file lies."""
    there = find(root, folder)
    paths, by_name = set(there), {_stem(path): path for path in there}
    prefix = os.path.relpath(folder, root)

    def locate(path: str) -> str:
        below = os.path.normpath(os.path.join(prefix, path))
        return next((each for each in (below, path) if each in paths), by_name.get(_stem(path), path))

    return locate


def _read(path: Path, root: Path) -> Entries:
    """Read a list.

    Raises:
        UserError: naming the line that is wrong.
    """
    try:
        lines = read_lines(path)
    except UnreadableError as error:
        raise UserError(f"list {str(path)!r} cannot be read ({error}): mend it, or set --data-dir.") from error
    header = lines[0][1] if lines and "youtube_id" in lines[0][1] else None
    found: dict[str, str] = {}
    for number, line in lines[header is not None :]:
        where = f"line {number} of {str(path)!r}"
        entry = _of_line(line) if header is None else _of_row(header, line)
        if entry is None:
            form = "'path label'" if header is None else "a row label,youtube_id,time_start,time_end"
            raise UserError(f"{where} is not {form}: {line!r}.")
        video = os.path.relpath(entry[0], root) if os.path.isabs(entry[0]) else os.path.normpath(entry[0])
        if ".." in entry[0].split("/") or video.startswith(".."):
            raise UserError(f"{where} leads out of {str(root)!r}: {line!r}.")
        if video in found:
            raise UserError(f"{where} names {video!r} again: leave one out.")
        found[video] = entry[1]
    if not found:
        raise UserError(f"list {str(path)!r} names no videos.")
    return list(found.items())


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _of_row(header: str, line: str) -> tuple[str, str] | None:
    row = next(csv.DictReader([header, line]), {})
    try:
        label, video = row["label"], row["youtube_id"]
        start, end = int(row["time_start"]), int(row["time_end"])
    except (KeyError, TypeError, ValueError):
        return None
    return (f"{video}_{start:06}_{end:06}.mp4", label) if label and _YOUTUBE_ID.fullmatch(video) else None


def _of_line(line: str) -> tuple[str, str] | None:
    found = _LINE.fullmatch(line.strip())
    return (found[1], found[2]) if found else None
