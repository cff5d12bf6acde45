"""List the files below a folder of class folders: each real file once, no hidden files, no loops.

Links to files and folders are followed, because people build data sets from them. A link back to a folder that is being
read is not followed. A file that is found twice in one class, by links to files or folders, counts once, under its own
name rather than that of a link.
"""

import errno
import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError

log = logging.getLogger(__name__)

SYSTEM = frozenset(
    (
        *("__macosx", "__pycache__", "lost+found", "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "#recycle"),
        *("#snapshot", "$recycle.bin", "recycler", "system volume information", "network trash folder"),
        *("temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)
"""Names, in lower case, that systems, file servers and archives leave in folders without being asked."""

_SHOWN = 3  # names in a message

HIDDEN = "hidden or system files and folders"
OTHERS = "files of other kinds"
BESIDE = "images or videos beside the class folders"
LOOPS = "links back to a folder that holds them"
TWICE = "files and folders that a class meets twice, by links"
HERE = "."

FolderKey = tuple[int, int] | str
"""Device and inode, or where a file system numbers nothing the real path."""


def hidden(name: str) -> bool:
    """Tell whether a name is hidden or belongs to a system: such folders and files are no part of a data set."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM


@dataclass(frozen=True)
class Entry:
    """A file of a data set.

    Attributes:
        path: relative to the base, with the names of links.
        label: which of the scanned folders it is in.
        size: in bytes; -1 for a link that leads nowhere.
    """

    path: str
    label: int
    size: int


@dataclass
class Left:
    """What a scan leaves out, for the log: how many of each kind, and the first names."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        if len(examples := self.examples.setdefault(kind, [])) < _SHOWN:
            examples.append(name)

    def say(self, base: Path) -> None:
        """Log a line for each kind."""
        for kind, count in self.counts.items():
            names = ", ".join(map(repr, self.examples[kind])) + (", ..." if count > _SHOWN else "")
            log.info("%r: left out %d %s (%s).", str(base), count, kind, names)


def class_folders(base: Path, suffixes: tuple[str, ...], left: Left) -> list[str]:
    """List the folders directly in a base, sorted; anything else there is noted as left out.

    Raises:
        OSError: if it cannot be read.
    """
    names, above = [], _above(base)
    for entry in _entries(base):
        if hidden(entry.name):
            left.add(HIDDEN, entry.name)
        elif not is_folder(entry):
            left.add(BESIDE if entry.name.lower().endswith(suffixes) else OTHERS, entry.name)
        elif _key(base / entry.name) in above:
            left.add(LOOPS, entry.name)
        else:
            names.append(entry.name)
    return names


def scan(base: Path, folders: Sequence[str], suffixes: tuple[str, ...], left: Left) -> list[Entry]:
    """List the wanted files below each of these folders of a base, each real file once, sorted by folder and path.

    Args:
        base: what paths are relative to.
        folders: their positions are the labels.
        suffixes: suffixes of the wanted files, in lower case.
        left: takes what is left out.

    Raises:
        OSError: for a folder that cannot be read.
        UserError: for a file that is in two of the folders, by a link.
    """
    above = _above(base)
    entries: list[Entry] = []
    keys: list[tuple[int, int]] = []
    several = False  # whether a file may have been met by two paths
    for label, folder in enumerate(folders):
        for path, status, linked in _walk(base, folder, suffixes, above, left):
            entries.append(Entry(path, label, -1 if status is None else status.st_size))
            keys.append((0, 0) if status is None else (status.st_dev, status.st_ino))
            several = several or linked or (status is not None and status.st_nlink > 1)
    if several:
        entries = _once(base, entries, np.array(keys, dtype=np.uint64), left)
    return sorted(entries, key=lambda entry: (entry.label, entry.path))


def _once(base: Path, entries: list[Entry], keys: NDArray[np.uint64], left: Left) -> list[Entry]:
    """Keep the first path to each file; ``keys`` are device and inode, 0 if the file system has no such numbers."""
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    kept = []
    for place, (entry, group) in enumerate(zip(entries, which.reshape(-1).tolist(), strict=True)):
        other = entries[first[group]]
        if other is entry or not keys[place, 1]:
            kept.append(entry)
        elif other.label == entry.label:
            left.add(TWICE, entry.path)
        else:
            raise UserError(
                f"{other.path!r} and {entry.path!r} in {str(base)!r} are one file in two classes, by a link: remove "
                "one of them."
            )
    return kept


def _walk(
    base: Path, folder: str, suffixes: tuple[str, ...], above: set[FolderKey], left: Left
) -> Iterator[tuple[str, os.stat_result | None, bool]]:
    """Walk real folders and files first, then links, so that a file comes by its own name before any other.

    Yields:
        path, status (``None`` of a link that leads nowhere) and whether a link led there.
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
        for entry in _entries(base / here):
            path = entry.name if here == HERE else f"{here}/{entry.name}"
            if hidden(entry.name):
                left.add(HIDDEN, path)
            elif is_folder(entry):
                if entry.is_symlink() or through_link:
                    links.append(path)
                else:
                    real.append(path)
            elif not entry.name.lower().endswith(suffixes):
                left.add(OTHERS, path)
            elif entry.is_symlink():
                linked_files.append(path)
            else:
                yield from _file(base, path, left, linked=through_link)
    for path in linked_files:
        yield from _file(base, path, left, linked=True)


def _file(base: Path, path: str, left: Left, *, linked: bool) -> Iterator[tuple[str, os.stat_result | None, bool]]:
    """Look at a file. A file that is gone, or whose link leads nowhere, stays: it is named when it does not decode."""
    try:
        status: os.stat_result | None = os.stat(base / path)
    except OSError as error:
        if not linked and error.errno != errno.ENOENT:
            raise
        status = None
    if status is None or stat.S_ISREG(status.st_mode):
        yield path, status, linked
    else:
        left.add(OTHERS, path)


def _above(base: Path) -> set[FolderKey]:
    """Give the scanned folder and all folders above it."""
    real = base.resolve()
    return {_key(folder) for folder in (real, *real.parents)}


def _key(folder: Path) -> FolderKey:
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False
