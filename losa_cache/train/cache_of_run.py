"""The cache that a run learned from, also where it was moved since."""

import logging
from typing import Any

from losa_cache.cache.registry import known_stores
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError

log = logging.getLogger(__name__)


def cache_of_run(run: object, origin: dict[str, Any]) -> ActivationCache:
    """Open the cache that a run learned from, or the one of this user's caches that has the same content.

    Args:
        run: its directory, for messages.
        origin: where its samples came from, as its config has it; from a cache.

    Raises:
        UserError: if it is not where it was, and nowhere known.
    """
    place = origin["cache"]
    try:
        return open_cache(place)
    except UserError as error:
        if (moved := _same_content(origin["fields"])) is None:
            raise UserError(
                f"the cache {place!r}, from which run {str(run)!r} learns, cannot be opened "
                f"({str(error).removesuffix('.')}): if it was moved, put it back, or a symbolic link to it there."
            ) from error
    log.warning("the cache %r is not there: the one at %r, of the same content, is used.", place, str(moved.path))
    return moved


def _same_content(fields: dict[str, Any]) -> ActivationCache | None:
    """Find a complete cache of this user whose identity is made of these fields."""
    for path in known_stores():
        try:
            cache = open_cache(path)
        except UserError:
            continue
        if cache.manifest.complete and cache.manifest.fields == fields:
            return cache
    return None
