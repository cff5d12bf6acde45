"""Names of data sets that lie in a folder. It imports no library, so that a command refuses at once."""

from pathlib import Path

from losa_cache.errors import UserError

ON_DISK = ("folder", "kinetics400", "places365", "vtab")


def plain(name: str) -> str:
    """Give the name that is looked up: ``Kinetics-400`` is ``kinetics400``."""
    return name.lower().replace("_", "").replace("-", "")


def require_data_dir(name: str, data_dir: str | Path | None) -> None:
    """Refuse a data set that lies in a folder, if the folder is not named.

    Raises:
        UserError: asking for ``--data-dir``.
    """
    if plain(name) in ON_DISK and data_dir is None:
        raise UserError(f"data set {plain(name)!r} needs --data-dir: the folder that holds it.")
