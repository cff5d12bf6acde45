"""Output formats: each module beside ``base.py`` is one. Its ``FORMAT`` is found by the suffix of the file's name.

A folder has a slash in place of a suffix.
"""

import pkgutil
from importlib import import_module
from pathlib import Path

from losa_cache.apply.predict.formats.base import Format
from losa_cache.errors import UserError

FOLDER = "/"


def find_format(out: str | Path, *, embeds: bool) -> Format:
    """Find the format of an output.

    Args:
        out: its path. A slash at its end, or a folder that is there, stands for a folder of pictures.
        embeds: whether feature vectors are to be written, or predictions, which may be maps.

    Raises:
        UserError: for a suffix of no format, one that does not hold what is wanted, or a package that is missing.
    """
    formats, path = _formats(), Path(out)
    suitable = [suffix for suffix, own in formats.items() if (own.features if embeds else own.predictions)]
    suffix = path.suffix.lower()
    if suffix not in formats and (str(out).endswith(FOLDER) or path.is_dir()):
        suffix = FOLDER
    maps = suffix in formats and formats[suffix].maps and not embeds
    if suffix not in suitable and not maps:
        what = "feature vectors (--embed)" if embeds else "predictions"
        hint = " Add --embed to write feature vectors." if suffix in formats and not embeds else ""
        if not (embeds or hint):
            hint = " Masks are also written to a folder of PNG files: end its name with a slash."
        raise UserError(f"--out is {str(out)!r}, but {what} are written to {', '.join(suitable)}.{hint}")
    formats[suffix].require()
    return formats[suffix]


def _formats() -> dict[str, Format]:
    modules = sorted(own.name for own in pkgutil.iter_modules(__path__) if own.name != "base")
    found: list[Format] = [import_module(f"{__name__}.{name}").FORMAT for name in modules]
    return {own.suffix: own for own in found}
