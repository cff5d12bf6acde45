"""One list of arguments to adapters and inputs; it looks at names and at what lies there, and imports no torch."""

import os
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from losa_cache.apply.names import is_adapter
from losa_cache.errors import UserError


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell adapters from inputs: what :func:`is_adapter` accepts is an adapter, the rest is an input.

    Raises:
        UserError: if either is missing, or an input is not there.
    """
    adapters = [word for word in words if is_adapter(word)]
    inputs = [word for word in words if not is_adapter(word)]
    for word in inputs:
        require_input(word)
    if not adapters:
        raise UserError(
            f"none of {', '.join(map(repr, words))} is an adapter: name the directory of a finished run, an adapter's "
            "folder, or hub:owner/name."
        )
    if not inputs:
        raise UserError("there is nothing to predict: name images, folders, videos, a CSV of paths, or a cache.")
    return adapters, inputs


def require_input(word: str) -> None:
    """Refuse an input where nothing lies. A pattern, and the URL of a cache, are looked up later.

    Raises:
        UserError: naming it.
    """
    if "\0" in word or not word:
        raise UserError(f"{word!r} can be no path: name an adapter, or images, folders, videos, a CSV or a cache.")
    if not ("://" in word or os.path.lexists(word) or has_magic(word)):
        raise UserError(f"there is neither an adapter nor an input at {word!r}: check the path.")


def is_cache(word: str) -> bool:
    """Tell whether an input is a cache: a Zarr group, or the URL of one."""
    return "://" in word or Path(word, "zarr.json").exists()


def require_one_kind(inputs: Sequence[str]) -> None:
    """Refuse a cache beside other inputs: its ids are those of its samples, and may be those of other images.

    Raises:
        UserError: naming the cache.
    """
    for word in inputs:
        if len(inputs) > 1 and is_cache(word):
            raise UserError(f"cache {word!r} stands beside other inputs: predict a cache by itself.")
