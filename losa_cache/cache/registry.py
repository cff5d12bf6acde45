"""The registry of the caches that this user completed: a small note of each below ``$LOSA_CACHE_HOME``.

Every cache has a file of its own, so that writers do not collide.

A note also says what its cache was extracted from. The options in a cache may have been written by anybody. They decide
what is opened to compute samples again only if such a note agrees with them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from losa_cache.cache.storage import StorePath
from losa_cache.errors import no_training_cache
from losa_cache.files import own_partial, write_json
from losa_cache.folders import find_home
from losa_cache.outside import UnreadableError, read_json

if TYPE_CHECKING:
    from losa_cache.cache.manifest import Manifest

OPENED = ("backbone", "dataset", "split", "data_dir", "weights")
"""Options that say what is opened, or fetched; the identity vouches for the others."""

log = logging.getLogger(__name__)


class Note(TypedDict, total=False):
    """The note of a cache.

    ``path`` is its place, ``identity`` that of its manifest, ``options`` a digest of what this user had opened for it,
    ``seconds`` the time of its extraction.
    """

    path: str
    identity: str
    options: str
    seconds: float


def remember(
    store: StorePath, manifest: "Manifest", options: Mapping[str, Any] | None = None, seconds: float | None = None
) -> None:
    """Note that a cache was completed now. If the home folder cannot be written, there is a warning in place of the
    note.

    A cache on a server is not noted: users name it, and say where its images lie when they compute them again.

    Args:
        store: the ``.zarr`` folder, wherever it lies.
        manifest: of it.
        options: options of this user's extraction. They are noted if they open the same as those in the cache. Without
            them, what was noted before stays.
        seconds: duration of the whole extraction. Without it, what was noted before stays.
    """
    if store.on_disk is None:
        return
    place = str(store.on_disk.resolve())
    content: Note = {"path": place, "identity": manifest.identity}
    ours = options is not None and _digest(options) == _digest(manifest.options)
    if ours or knows(store, manifest):
        content["options"] = _digest(manifest.options)
    if (took := extraction_seconds(store, manifest) if seconds is None else seconds) is not None:
        content["seconds"] = took
    home = find_home()
    if home is None:
        log.warning("%s is complete, but not listed: this user has no home folder; set LOSA_CACHE_HOME.", place)
        return
    note = _note(home, place)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, content, own_partial(note))
    except OSError as error:
        log.warning(
            "%s is complete, but not listed: %s cannot be written (%s); name the cache where it is used, or set "
            "LOSA_CACHE_HOME.",
            *(place, note.parent, error.strerror),
        )


def knows(store: StorePath, manifest: "Manifest") -> bool:
    """Tell whether this user extracted a cache from the places that the options in its manifest name."""
    home = find_home()
    if home is None or manifest.options is None or store.on_disk is None:
        return False
    place = str(store.on_disk.resolve())
    try:
        note = read_json(_note(home, place), Note)
    except UnreadableError:
        return False
    expected = (place, manifest.identity, _digest(manifest.options))
    return (note.get("path"), note.get("identity"), note.get("options")) == expected


def extraction_seconds(store: StorePath, manifest: "Manifest") -> float | None:
    """Give the seconds that a cache's extraction took, if it ran on this machine without an interruption."""
    home = find_home()
    if store.on_disk is None:
        return None
    place = str(store.on_disk.resolve())
    try:
        note = Note() if home is None else read_json(_note(home, place), Note)
    except UnreadableError:
        return None
    return note.get("seconds") if (note.get("path"), note.get("identity")) == (place, manifest.identity) else None


def forget(store: StorePath) -> None:
    """Remove the note of a cache that is no more. One that cannot be removed is passed over: its cache is not there."""
    home = find_home()
    if home is not None and store.on_disk is not None:
        with suppress(OSError):
            _note(home, str(store.on_disk.resolve())).unlink(missing_ok=True)


def carry(store: StorePath, target: StorePath, manifest: "Manifest") -> None:
    """Note a copy of a cache, of the same age and with all that is known of the cache itself.

    Args:
        store: of the cache, whether or not it is still there.
        target: of the copy.
        manifest: of both.
    """
    options = manifest.options if knows(store, manifest) else None
    remember(target, manifest, options, extraction_seconds(store, manifest))
    home = find_home()
    if home is not None and store.on_disk is not None and target.on_disk is not None:
        ours, theirs = (_note(home, str(place.on_disk.resolve())) for place in (store, target) if place.on_disk)
        if changed := _changed(ours):
            with suppress(OSError):
                os.utime(theirs, ns=(changed, changed))


def known_stores() -> list[Path]:
    """Name the stores that were completed and are still there, the most recent first.

    A note that cannot be read is skipped, with a warning that names it.
    """
    return [Path(path) for path in _paths() if os.path.isdir(path)]


def require_known_store() -> None:
    """Refuse if this user has no cache. Unlike opening caches, this imports no large library.

    Raises:
        UserError: if there is none.
    """
    if not known_stores():
        raise no_training_cache()


def _paths() -> Iterator[str]:
    home = find_home()
    notes = [] if home is None else [(_changed(note), note) for note in _listed(home / "known")]
    for _, note in sorted(notes, reverse=True):
        try:
            yield read_json(note, Note)["path"]
        except (UnreadableError, KeyError) as error:
            _skip(note, "it names no path" if isinstance(error, KeyError) else str(error))


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if name.endswith(".json")]
    except OSError:  # none yet
        return []


def _changed(note: Path) -> int:
    try:
        return note.stat().st_mtime_ns
    except OSError:
        return 0


@cache  # once a process
def _skip(note: Path, reason: str) -> None:
    log.warning("%s, a note of a cache, is skipped (%s): delete it; extract again lists the cache anew.", note, reason)


def _note(home: Path, place: str) -> Path:
    return home / "known" / f"{_sha256(place)[:16]}.json"


def _digest(options: Mapping[str, Any] | None) -> str:
    opened = [(options or {}).get(name) for name in OPENED]
    return f"sha256:{_sha256(json.dumps(opened))}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()  # file names need not be UTF-8
