"""Files by their names without suffixes, as tables of competitions write them: ``0a1b`` is ``0a1b.jpg``."""

import os
from collections.abc import Sequence
from pathlib import Path

from losa_cache.data import medical, video
from losa_cache.data.scan import is_folder
from losa_cache.data.sources.folder import EXTENSIONS
from losa_cache.errors import UserError

SUFFIXES = EXTENSIONS + medical.SUFFIXES + video.EXTENSIONS


def with_suffixes(base: Path, paths: Sequence[str]) -> list[str]:
    """Complete paths that have no suffix of an image or video by that of the only file of this name.

    A file that has exactly the name stays as it is, and so does a path without any such file. Each folder is listed
    once, and none if all paths have suffixes.

    Args:
        base: folder that the paths are below.
        paths: relative.

    Raises:
        UserError: for a name that several files have.
    """
    folders: dict[str, dict[str, list[str]]] = {}
    completed = []
    for path in paths:
        folder, name = os.path.split(path)
        if name.lower().endswith(SUFFIXES):
            completed.append(path)
            continue
        if folder not in folders:
            folders[folder] = files_by_stem(base / folder)
        files = folders[folder].get(name, [name])
        if len(files) > 1 and name not in files:
            raise UserError(
                f"{path!r} may be {files[0]!r} or {files[1]!r} in {str(base / folder)!r}: write it with its suffix."
            )
        completed.append(path if name in files else os.path.join(folder, files[0]))
    return completed


def files_by_stem(folder: Path) -> dict[str, list[str]]:
    """List a folder's files of images and videos, and those without such a suffix, by their names without it.

    A folder that cannot be listed has none: its files are named as missing.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not is_folder(entry))
    except OSError:
        return {}
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(stem(name), []).append(name)
    return files


def stem(name: str) -> str:
    """Give a name without the suffix of an image or video, if it has one."""
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]
