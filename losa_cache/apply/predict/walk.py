"""The images and videos below a folder, one folder's names at a time: a tree of any size takes little memory."""

import os
from collections.abc import Iterator
from pathlib import Path

from losa_cache.data.medical import is_nameless_dicom
from losa_cache.data.scan import hidden, is_folder


def walk(folder: Path, suffixes: tuple[str, ...], unread: list[tuple[Path, str]]) -> Iterator[Path]:
    """Give the files below a folder, in the order of their names: those of a folder before those of its subfolders.

    Links are followed, but a folder is read once. Hidden files and what systems leave in folders are left out.

    Args:
        folder: to read.
        suffixes: of the files that are wanted, in lower case; DICOM files without a suffix are, too.
        unread: takes each subfolder that cannot be read, and why.

    Yields:
        paths that begin with ``folder``.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)
            if (key := (status.st_dev, status.st_ino)) in visited:
                continue
            visited.add(key)
            files, folders = _names(here, suffixes)
        except OSError as error:
            unread.append((here, error.strerror or str(error)))
            continue
        waiting += [here / name for name in reversed(folders)]
        for name in files:
            yield here / name


def _names(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """List the wanted files and the subfolders of a folder, sorted."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                continue
            if is_folder(entry):
                folders.append(entry.name)
            elif entry.name.lower().endswith(suffixes) or is_nameless_dicom(entry.path):
                files.append(entry.name)
    return sorted(files), sorted(folders)
