"""How adapters are named on a command line and in requests. It imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.sidenet.adapter_folder import FOLDER, HUB, has_adapter


def is_adapter(text: str) -> bool:
    """Tell whether an argument names an adapter: a finished run, an adapter's folder, or one on the hub.

    ``NAME=`` may stand in front, for the name that it goes by.
    """
    _, place = _split(text)
    return _is_place(place)


def name_adapters(texts: Sequence[str]) -> dict[str, str]:
    """Give each adapter the name that it goes by.

    By default that is the name of the run, of the folder, or of the repository on the hub.

    Args:
        texts: arguments that name adapters.

    Returns:
        the place of each, by name, in the order given.

    Raises:
        UserError: for what is no adapter, and for two of one name.
    """
    places: dict[str, str] = {}
    for text in texts:
        name, place = _split(text)
        if not _is_place(place):
            raise UserError(
                f"{place!r} is no adapter: name the directory of a finished run, an adapter's folder, or "
                "hub:owner/name."
            )
        name = name or _default(place)
        if name in (".", ".."):
            raise UserError(f"{name!r} can be no adapter's name, {text!r}: give another one.")
        if name in places:
            raise UserError(
                f"two adapters are called {name!r}, {places[name]!r} and {place!r}: give one another name, as in "
                f"other={place}."
            )
        places[name] = place
    return places


def _split(text: str) -> tuple[str, str]:
    """Tell a name from the place behind it; the name may be empty."""
    name, equals, place = text.partition("=")
    if equals and not _is_place(text) and name and "/" not in name:
        return name, place
    return "", text


def _is_place(place: str) -> bool:
    try:
        return place.startswith(HUB) or ("\0" not in place and has_adapter(Path(place)))
    except OSError:  # a name that is too long
        return False


def _default(place: str) -> str:
    if place.startswith(HUB):
        return place.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    folder = Path(place).resolve()
    return folder.parent.name if folder.name == FOLDER else folder.name
