"""Names of data sets, their splits, and decoders. This module imports no library, so that a command refuses at once."""

import re
from collections.abc import Callable
from pathlib import Path

from losa_cache.data.shards import beneath, shards_of, with_paths
from losa_cache.data.spec import SPECS
from losa_cache.errors import UserError, nearest
from losa_cache.folders import given_path

PILLOW, NVJPEG = DECODERS = ("pillow", "nvjpeg")
"""What decodes image files."""
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of what is not of this machine


def plain(name: str) -> str:
    """Give the name that is looked up: ``Kinetics-400`` is ``kinetics400``."""
    return name.lower().replace("_", "").replace("-", "")


TORCHVISION = "builtin"
"""The kind of torchvision's classification sets."""
_KINDS = {plain(name): kind for kind, spec in SPECS.items() if not spec.prefix for name in spec.names or (kind,)}
"""The kind of data set behind each name."""
OWN_NAMES = tuple(name for name, kind in _KINDS.items() if kind != TORCHVISION)
"""The names that are not torchvision's."""


def kind_of(name: str) -> tuple[str, str]:
    """Give the kind of a data set, and its plain name or what stands behind its prefix.

    What has no known name, prefix or suffix is the path of a folder.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix.lower() in SPECS and SPECS[prefix.lower()].prefix:
        return prefix.lower(), rest
    if is_name(name):
        return _KINDS[plain(name)], plain(name)
    suffixed = (kind for kind, spec in SPECS.items() if spec.suffixes and name.lower().endswith(spec.suffixes))
    return next(suffixed, "folder"), name


def is_name(name: str) -> bool:
    """Tell whether a data set is known by this name; else it has a prefix, or is a path."""
    return plain(name) in _KINDS


def located(name: str, whole: Callable[[Path], Path]) -> str:
    """Write a data set such that the path in it, if there is one, holds from any working directory.

    Args:
        name: of the data set.
        whole: makes a path absolute.
    """
    kind, rest = kind_of(name)
    if is_name(name) or (SPECS[kind].remote and not Path(rest).exists()):
        return name
    if SPECS[kind].patterns:
        return f"{kind}:{with_paths(rest, lambda path: str(whole(given_path(path))))}"
    return f"{kind}:{whole(given_path(rest))}" if rest != name else str(whole(given_path(name)))


def moved(name: str, place: Path) -> dict[str, str]:
    """Give the options of a data set whose files lie at another place now: ``dataset``, ``data_dir`` or both.

    Args:
        name: of the data set.
        place: the folder of its images. Of a data set that is one file, such as a table: the folder that holds the file
            and the images, or the file itself. A folder without that file holds images alone: then it is where it was.
            Of archives: the folder that holds them.
    """
    kind, rest = kind_of(name)
    if is_name(name):
        return {"data_dir": str(place)}
    prefix = f"{kind}:" if SPECS[kind].prefix else ""
    if SPECS[kind].patterns:
        return {"dataset": f"{prefix}{beneath(rest, place)}"}
    if SPECS[kind].whole:
        inside = place / Path(rest).name
        return {"dataset": f"{prefix}{inside if inside.exists() else place}"}
    if not is_file(name) or place.is_file():
        return {"dataset": f"{prefix}{place}"}
    file = place / Path(rest).name
    return {"data_dir": str(place)} | ({"dataset": f"{prefix}{file}"} if file.is_file() else {})


def is_file(name: str) -> bool:
    """Tell whether a data set is one file, such as a table of its images."""
    return bool(SPECS[kind_of(name)[0]].suffixes)


def is_embedded(name: str) -> bool:
    """Tell whether a data set comes with a package: nothing else is opened for it."""
    return SPECS[kind_of(name)[0]].embedded


def require_data_set(name: str, data_dir: str | Path | None) -> None:
    """Refuse a data set that is neither known by name nor there, or lies in a folder that is not named.

    Raises:
        UserError: naming the nearest ones, or asking for ``--data-dir``.
    """
    kind, rest = kind_of(name)
    spec = SPECS[kind]
    if is_name(name):
        if spec.needs_folder and data_dir is None:
            raise UserError(f"data set {kind!r} needs --data-dir: the folder that holds it.")
    elif spec.whole and data_dir is not None:
        raise UserError(
            f"data set {name!r} holds its images itself: leave --data-dir out, and name its place behind {kind}:."
        )
    elif spec.patterns:
        shards_of(rest)
    elif spec.prefix:
        if not rest or not (given_path(rest).exists() or (spec.remote and _ID.fullmatch(rest))):
            behind = "" if rest == name else f" behind {kind}:"
            raise UserError(f"data set {name!r}: there is no file or folder {rest!r}: name one{behind}.")
    elif not Path(name).is_dir():
        prefixes = [f"{kind}:..." for kind, spec in SPECS.items() if spec.prefix]
        raise UserError(
            f"unknown data set {name!r}: it is no folder either{nearest(plain(name), [*_KINDS])}. Known: "
            f"{', '.join([*OWN_NAMES, *prefixes])} and torchvision's "
            f"{', '.join(map(str.lower, SPECS[TORCHVISION].names))}."
        )
    elif data_dir is not None:
        raise UserError(
            f"data set {name!r} is a folder, and --data-dir names a folder, too ({str(data_dir)!r}): give one of them."
        )


def require_columns(name: str, columns: str | None) -> None:
    """Refuse columns of a data set that is no table.

    Raises:
        UserError: naming them.
    """
    if columns is not None and not SPECS[kind_of(name)[0]].columns:
        raise UserError(f"columns is {columns!r}, but data set {name!r} is no table: leave it out.")


def require_split(name: str, split: str) -> None:
    """Refuse a split that a data set does not have, as far as its name tells.

    Raises:
        UserError: naming the splits that it has.
    """
    kind, _ = kind_of(name)
    known = SPECS[kind].splits
    if known and split not in known:
        raise UserError(f"{kind} has no split {split!r}: choose one of {', '.join(known)}.")


def require_decoder_name(name: str) -> None:
    """Refuse an unknown decoder.

    Raises:
        UserError: naming the known ones.
    """
    if name not in DECODERS:
        raise UserError(f"unknown decoder {name!r}: choose one of {', '.join(DECODERS)}.")
