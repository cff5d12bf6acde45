"""List the files below a folder of class folders: each real file once, no hidden files, no loops.

Links to files and folders are followed, because people build data sets from them. A link back to a folder that is being
read is not followed. A file that is found twice in one class, by links to files or folders, counts once, under its own
name rather than that of a link. Files are kept in columns: a million of them take little more than their names.
"""

import errno
import os
import stat
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from losa_cache.data.left import ALIKE, BESIDE, HIDDEN, LOOPS, OTHERS, TWICE, Left
from losa_cache.errors import UserError

SYSTEM = frozenset(
    (
        *("__macosx", "__pycache__", "lost+found", "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "#recycle"),
        *("#snapshot", "$recycle.bin", "recycler", "system volume information", "network trash folder"),
        *("temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)
"""Names, in lower case, that systems, file servers and archives leave in folders without being asked."""

HERE = "."

FolderKey = tuple[int, int] | str
"""Device and inode, or where a file system numbers nothing the real path."""
Wanted = Callable[[str], bool]
"""Tells of the path of a file whether it is wanted."""


def hidden(name: str) -> bool:
    """Tell whether a name is hidden or belongs to a system: such folders and files are no part of a data set."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM


@dataclass(frozen=True)
class Listing:
    """The files of a data set, sorted by label and path.

    Attributes:
        paths: relative to the base, with the names of links.
        labels: int64; which of the scanned folders each file is in.
        sizes: int64, in bytes; -1 of a link that leads nowhere.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]


def class_folders(base: Path, suffixes: tuple[str, ...], left: Left) -> list[str]:
    """List the folders directly in a base, sorted; anything else there is noted as left out.

    Raises:
        OSError: if it cannot be read.
    """
    names, above = [], _above(base)
    with os.scandir(base) as entries:
        for entry in entries:
            if hidden(entry.name):
                left.add(HIDDEN, entry.name)
            elif not is_folder(entry):
                left.add(BESIDE if entry.name.lower().endswith(suffixes) else OTHERS, entry.name)
            elif _key(base / entry.name) in above:
                left.add(LOOPS, entry.name)
            else:
                names.append(entry.name)
    return sorted(names)


def scan(
    base: Path, folders: Sequence[str], suffixes: tuple[str, ...], left: Left, also: Wanted | None = None
) -> Listing:
    """List the wanted files below each of these folders of a base, each real file once.

    Args:
        base: what paths are relative to.
        folders: their positions are the labels.
        suffixes: suffixes of the wanted files, in lower case.
        left: takes what is left out.
        also: tells whether a file without these suffixes is wanted.

    Raises:
        OSError: for a folder that cannot be read.
        UserError: for a file that is in two of the folders, by a link.
    """
    above = _above(base)
    paths: list[str] = []
    sizes, keys, ends = array("q"), array("Q"), [0]
    several = False  # whether a file may have been met by two paths
    for folder in folders:
        for path, linked in _walk(base, folder, suffixes, above, left, also):
            status = _status(base, path, linked=linked)
            if status is not None and not stat.S_ISREG(status.st_mode):
                left.add(OTHERS, path)
                continue
            paths.append(path)
            sizes.append(-1 if status is None else status.st_size)
            keys.extend((0, 0) if status is None else (status.st_dev, status.st_ino))
            several = several or linked or (status is not None and status.st_nlink > 1)
        ends.append(len(paths))
    labels = np.repeat(np.arange(len(folders)), np.diff(ends))
    kept: Sequence[int] = range(len(paths))
    if several:
        kept = _once(base, paths, labels, np.array(keys, dtype=np.uint64).reshape(-1, 2), left)
    starts = np.searchsorted(labels[kept], np.arange(len(folders) + 1)).tolist()
    order = [place for a, b in pairwise(starts) for place in sorted(kept[a:b], key=paths.__getitem__)]
    return Listing([paths[place] for place in order], labels[order], np.array(sizes, dtype=np.int64)[order])


def _once(base: Path, paths: list[str], labels: NDArray[np.int64], keys: NDArray[np.uint64], left: Left) -> list[int]:
    """Keep the first path to each file; ``keys`` are device and inode, 0 if the file system has no such numbers."""
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    kept = []
    for place, other in enumerate(first[which.reshape(-1)].tolist()):
        if other == place or not keys[place, 1]:
            kept.append(place)
        elif labels[other] == labels[place]:
            left.add(TWICE, paths[place])
        else:
            raise UserError(
                f"{paths[other]!r} and {paths[place]!r} in {str(base)!r} are one file in two classes, by a link: "
                "remove one of them."
            )
    return kept


def holds_any(base: Path, folder: str, suffixes: tuple[str, ...], also: Wanted | None = None) -> bool:
    """Tell whether a file of a wanted name lies below a folder of a base.

    Raises:
        OSError: for a folder that cannot be read.
    """
    return next(_walk(base, folder, suffixes, _above(base), Left(), also), None) is not None


@dataclass
class _Folder:
    """The names in a folder, by what they are; sorted.

    Attributes:
        folders: real ones.
        linked_folders: links to folders.
        files: wanted ones that are no links.
        linked_files: wanted ones that are links.
    """

    folders: list[str] = field(default_factory=list)
    linked_folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    linked_files: list[str] = field(default_factory=list)


def _read(folder: str, prefix: str, suffixes: tuple[str, ...], left: Left, also: Wanted | None) -> _Folder:
    """List a folder; names in ``left`` begin with the prefix."""
    found = _Folder()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if hidden(name):
                left.add(HIDDEN, prefix + name)
            elif is_folder(entry):
                (found.linked_folders if entry.is_symlink() else found.folders).append(name)
            elif not name.lower().endswith(suffixes) and not (also and also(f"{folder}/{name}")):
                left.add(OTHERS, prefix + name)
            else:
                (found.linked_files if entry.is_symlink() else found.files).append(name)
    for names in (found.folders, found.linked_folders, found.files, found.linked_files):
        names.sort()
    _note_alike(found.files + found.linked_files, prefix, left)
    return found


def _note_alike(names: list[str], prefix: str, left: Left) -> None:
    """Note files whose names differ only in case or extension: a copy, or a mask beside its image."""
    stems = Counter(map(_stem, names))
    if len(stems) < len(names):
        for name in names:
            if stems[_stem(name)] > 1:
                left.add(ALIKE, prefix + name)


def _stem(name: str) -> str:
    stem, _, end = name.rpartition(".")
    return (name if not stem or end.isdecimal() else stem).casefold()  # IM001, 1.2.840.1: such names have no extension


def _walk(
    base: Path,
    folder: str,
    suffixes: tuple[str, ...],
    above: set[FolderKey],
    left: Left,
    also: Wanted | None,
) -> Iterator[tuple[str, bool]]:
    """Walk real folders and files first, then links, so that a file comes by its own name before any other.

    Yields:
        the path of a file of a wanted name, and whether a link led there.
    """
    visited: set[FolderKey] = set()
    real, links = [folder], deque[str]()
    linked_files: list[str] = []
    through_link = (base / folder).is_symlink()
    while real or links:
        through_link = through_link or not real
        here = real.pop() if real else links.popleft()
        key = _key(base / here)
        if key in visited or (key in above and here != HERE):
            left.add(LOOPS if key in above else TWICE, here)
            continue
        visited.add(key)
        prefix = "" if here == HERE else f"{here}/"
        found = _read(f"{base}/{here}", prefix, suffixes, left, also)
        (links if through_link else real).extend(prefix + name for name in found.folders)
        links.extend(prefix + name for name in found.linked_folders)
        linked_files += (prefix + name for name in found.linked_files)
        for name in found.files:
            yield prefix + name, through_link
    for path in linked_files:
        yield path, True


def _status(base: Path, path: str, *, linked: bool) -> os.stat_result | None:
    """Look at a file; ``None``: it is gone, or its link leads nowhere. It is named when it does not decode."""
    try:
        return os.stat(f"{base}/{path}")  # a Path for each of a million is slow
    except OSError as error:
        if not linked and error.errno != errno.ENOENT:
            raise
        return None


def _above(base: Path) -> set[FolderKey]:
    """Give the scanned folder and all folders above it."""
    real = base.resolve()
    return {_key(folder) for folder in (real, *real.parents)}


def _key(folder: Path) -> FolderKey:
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False
