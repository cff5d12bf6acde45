"""Caches on a file system that an interrupted ``move`` or ``remove`` has left between two names.

Each folder of such a cache holds a note that says what was being done. So no folder is taken for one of these by its
name alone, and nobody writes a new cache among the files of one that is under way. A note's own name is a temporary
one: a writer that goes on with a cache that never lost its name removes it.
"""

import os
from pathlib import Path
from typing import TypedDict, TypeVar

from losa_cache.cache.storage import Place, receipts_of
from losa_cache.errors import UserError
from losa_cache.files import write_json
from losa_cache.outside import UnreadableError, read_json

MOVING, REMOVED = ".moving", ".removed"
MOVE_NOTE, REMOVAL_NOTE = "moving.partial", "removed.partial"

Note = TypeVar("Note", "Move", "Removal")


class Move(TypedDict):
    """The note of a move: from which place to which."""

    source: str
    target: str


class Removal(TypedDict):
    """The note of a removal: the cache's identity, and a digest of all its receipts; ``None`` if they are not whole."""

    identity: str
    digest: str | None


def moving_name(target: Place) -> Place:
    """Name the store of a cache on its way to a place."""
    return target.with_name(target.name + MOVING)


def move_in(folder: Path) -> Move | None:
    """Read the note of a move in a folder."""
    return _read(folder / MOVE_NOTE, Move)


def removal_in(folder: Path) -> Removal | None:
    """Read the note of a removal in a folder."""
    return _read(folder / REMOVAL_NOTE, Removal)


def note_move(folder: Path, move: Move) -> None:
    """Write the note of a move into a folder."""
    write_json(folder / MOVE_NOTE, move)


def note_removal(folder: Path, removal: Removal) -> None:
    """Write the note of a removal into a folder."""
    write_json(folder / REMOVAL_NOTE, removal)


def require_whole(place: Path) -> None:
    """Refuse a place where nothing is, but whose cache is between two names.

    Raises:
        UserError: naming the command that ends what was begun.
    """
    if os.path.lexists(place):
        return
    receipts = receipts_of(place)
    if (move := move_in(receipts) or move_in(moving_name(place))) is not None:
        raise UserError(
            f"a move to or from {str(place)!r} was interrupted: run losa-cache move {move['source']!r} "
            f"{move['target']!r} again."
        )
    if removal_in(receipts) is not None:
        raise UserError(f"a removal of {str(place)!r} was interrupted: run losa-cache remove {str(place)!r} again.")


def _read(file: Path, shape: type[Note]) -> Note | None:
    if file.parent.is_symlink():
        return None
    try:
        return read_json(file, shape)
    except (OSError, UnreadableError):
        return None
