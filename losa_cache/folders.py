"""Where this user's files go, and what a path that was given means."""

import os
from pathlib import Path

from losa_cache.errors import UserError


def find_home() -> Path | None:
    """Find ``$LOSA_CACHE_HOME``, by default ``~/.cache/losa-cache``; ``None`` where this user has no home folder."""
    try:
        return Path(os.environ.get("LOSA_CACHE_HOME") or "~/.cache/losa-cache").expanduser()
    except RuntimeError:  # neither $HOME nor an entry of the user in the system's list
        return None


def home() -> Path:
    """Give :func:`find_home`.

    Raises:
        UserError: where this user has no home folder.
    """
    found = find_home()
    if found is None:
        raise UserError("this user has no home folder: set LOSA_CACHE_HOME to a folder that can be written.")
    return found


def given_path(text: str | Path) -> Path:
    """Take a path as a user gives it: ``~`` and ``~name`` stand for home folders.

    Raises:
        UserError: if there is no such home folder, or the text can be no path.
    """
    if not str(text):
        raise UserError("a path is empty, '': name a file or folder, or leave the option out.")
    if "\0" in str(text):
        raise UserError(f"{str(text)!r} holds a zero byte, which no path can.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{str(text)!r} begins with a home folder that cannot be found: write the path out.") from error


def is_url(text: str) -> bool:
    """Whether this is a URL and not the path of a file."""
    return "://" in text


def settled_path(text: str | Path) -> Path:
    """Follow every link of a path and make it absolute: two names of one place become the same.

    Raises:
        UserError: as of :func:`given_path`; for a link that leads nowhere or back to itself; for a path that is too
            long.
    """
    path = given_path(text)
    for part in (path, *path.parents):
        if os.path.islink(part) and not os.path.exists(part):
            raise UserError(
                f"{str(part)!r} is a link to {os.readlink(part)!r}, which leads nowhere: mend or remove it."
            )
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "its links do not end"
        raise UserError(f"{str(text)!r} cannot be followed ({reason}).") from error


def require_folder_of_caches(folder: Path) -> None:
    """Refuse what is no folder where one with caches is searched.

    Raises:
        UserError: naming it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}: name the one that holds the caches.")


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written or, where it is not there yet, be made, before anything is computed.

    Raises:
        UserError: naming what is in the way.
    """
    there = next(part for part in (folder, *folder.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise UserError(f"{str(folder)!r} cannot be made: {str(there)!r} is no folder; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{str(folder)!r} cannot be written: {str(there)!r} does not allow it; allow it, or choose another --out."
        )
