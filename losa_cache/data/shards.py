"""Which tar files a pattern means. This module imports no library, so that a command refuses at once."""

import glob
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.folders import is_url

SUFFIX = ".tar"
MOST = 100_000  # shards
_BRACES = re.compile(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}")
_MOST_BRACES = 32  # in one pattern
_JOINT = "::"  # between patterns, as WebDataset has it


def shards_of(pattern: str) -> list[str]:
    """List the paths and URLs of shards.

    Args:
        pattern: paths or URLs with ``{000..099}`` or ``{a,b}``; a path may have ``*``, ``?`` and ``[...]``, too, or be
            a folder, of which all tar files are taken. Several are joined by ``::``.

    Raises:
        UserError: for a pattern that no file fits, too many files or braces, or a file that is named twice.
    """
    where = f"data set 'wds:{pattern}'"
    if any(part.count("{") > _MOST_BRACES for part in pattern.split(_JOINT)):
        raise UserError(f"{where[:80]}... has more than {_MOST_BRACES} braces: write fewer.")
    found: dict[str, None] = {}
    for each in islice((each for part in pattern.split(_JOINT) for each in _expanded(part)), MOST):
        shards = [each] if is_url(each) else _paths(os.path.expanduser(each))
        if not shards:
            raise UserError(
                f"{where}: no tar file is called {each!r}: write wds: and a file, a folder of tar files, "
                "a pattern such as shards-{000..099}.tar, or URLs."
            )
        if again := next((shard for shard in shards if shard in found), None):
            raise UserError(f"{where} names {again!r} twice: leave one out.")
        found |= dict.fromkeys(shards)
    if not found:
        raise UserError(f"{where} names no files: write the lower number of {{000..099}} first.")
    if len(found) >= MOST:
        raise UserError(f"{where} names {MOST} files or more: write fewer.")
    return list(found)


def with_paths(pattern: str, whole: Callable[[str], str]) -> str:
    """Change each path of a pattern, but no URL."""
    return _JOINT.join(part if is_url(part) else whole(part) for part in pattern.split(_JOINT))


def beneath(pattern: str, folder: Path) -> str:
    """Give a pattern of the same tar files in another folder. URLs become paths, too: nothing is fetched."""
    parts = pattern.split(_JOINT)
    return _JOINT.join(str(folder / Path(part).name if part.endswith(SUFFIX) else folder) for part in parts)


def _paths(path: str) -> list[str]:
    if os.path.isdir(path):
        inside = (f"{glob.escape(path)}/{depth}*{SUFFIX}" for depth in ("", "*/"))
        return sorted((shard for pattern in inside for shard in glob.glob(pattern)), key=_natural)
    return [path] if os.path.exists(path) else sorted(glob.glob(path), key=_natural)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort 2.tar before 10.tar."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path)]


def _expanded(pattern: str) -> Iterator[str]:
    """Write out the first braces, and those behind them."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    low, high, listed = braces.groups()
    if listed is not None:
        choices = listed.split(",")
    else:
        choices = [str(number).zfill(len(low)) for number in range(int(low), min(int(high), int(low) + MOST) + 1)]
    for each in choices:
        yield from _expanded(pattern[: braces.start()] + each + pattern[braces.end() :])
