"""Output formats: each module beside ``base.py`` is one. Its ``FORMAT`` is found by the suffix of the file's name."""

import pkgutil
from importlib import import_module
from pathlib import Path

from losa_cache.apply.predict.formats.base import Format
from losa_cache.errors import UserError


def find_format(path: Path, *, embeds: bool) -> Format:
    """Find the format of an output.

    Args:
        path: of the output.
        embeds: whether feature vectors are to be written, or predictions, which may be maps.

    Raises:
        UserError: for a suffix of no format, one that does not hold what is wanted, or a package that is missing.
    """
    formats = _formats()
    suitable = [suffix for suffix, own in formats.items() if (own.features if embeds else own.predictions)]
    suffix = path.suffix.lower()
    maps = suffix in formats and formats[suffix].maps and not embeds
    if suffix not in suitable and not maps:
        what = "feature vectors (--embed)" if embeds else "predictions"
        hint = " Add --embed to write feature vectors." if suffix in formats and not embeds else ""
        raise UserError(f"--out is {str(path)!r}, but {what} are written to {', '.join(suitable)}.{hint}")
    formats[suffix].require()
    return formats[suffix]


def _formats() -> dict[str, Format]:
    modules = sorted(own.name for own in pkgutil.iter_modules(__path__) if own.name != "base")
    found: list[Format] = [import_module(f"{__name__}.{name}").FORMAT for name in modules]
    return {own.suffix: own for own in found}
