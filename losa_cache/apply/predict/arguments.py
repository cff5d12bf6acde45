"""One list of arguments to adapters and inputs; it looks at names and at what lies there, and imports no torch."""

import os
import shlex
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from losa_cache.apply.names import is_adapter
from losa_cache.data.names import is_name, kind_of
from losa_cache.data.spec import SPECS
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
    _require_no_data_set(word)
    if "\0" in word or not word:
        raise UserError(f"{word!r} can be no path: name an adapter, or images, folders, videos, a CSV or a cache.")
    if not ("://" in word or os.path.lexists(word) or has_magic(word)):
        raise UserError(f"there is neither an adapter nor an input at {word!r}: check the path.")


def _require_no_data_set(word: str) -> None:
    """Refuse what ``extract`` opens, and nothing here: archives, and data sets that a prefix names.

    Raises:
        UserError: saying what to do.
    """
    kind, rest = kind_of(word)
    if "://" in word or is_name(word) or not SPECS[kind].prefix or os.path.isdir(word):
        return
    if SPECS[kind].whole:
        raise UserError(
            f"{word!r} is a data set, whose images predict does not open: extract it with losa-cache extract "
            f"--dataset {shlex.quote(word)}, and predict the cache."
        )
    if rest != word:
        raise UserError(f"{word!r} begins with {kind}:, which predict does not know: name {rest!r}.")


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
