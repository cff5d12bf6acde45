"""From the path or URL that a user gives to the place in a store."""

import pkgutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from losa_cache.cache import stores
from losa_cache.cache.storage import StorePath
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.folders import is_url

Location = Path | StorePath
"""Where a cache lies, as callers may give it."""
REQUESTS = 16  # at the same time, for sizes of files


def locate(place: str | Location) -> StorePath:
    """Give the place of a path or URL; a place has one name, however it was written.

    Raises:
        UserError: for a URL or a path that cannot name a cache.
    """
    if isinstance(place, str) and is_url(place):
        return store_of(place).parse(place)
    return LocalPath.parse(place) if isinstance(place, str | Path) else place


def store_of(url: str) -> type[StorePath]:
    """Find the class of store for a URL: every module beside ``stores/local.py`` holds one.

    Raises:
        UserError: if there is none; it lists those that there are.
    """
    for module in pkgutil.iter_modules(stores.__path__):
        import_module(f"{stores.__name__}.{module.name}")
    scheme, known = url.partition("://")[0].lower(), StorePath.by_scheme
    if scheme not in known:
        names = ", ".join(f"{name}://" for name in known)
        raise UserError(f"URLs of {scheme}:// cannot be opened: give a path or one of {names}.")
    return known[scheme]


def sizes(files: Sequence[StorePath]) -> list[int]:
    """Give the size of each file in bytes, 0 if it is not there; many requests run at the same time."""

    def size(file: StorePath) -> int:
        try:
            return file.size()
        except OSError:  # not there, or behind a folder that cannot be read
            return 0

    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(size, files))
