"""The columns of a table that a data set takes, as ``--columns`` writes them. This module imports no library."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from losa_cache.errors import UserError, nearest

IMAGE, LABEL, SPLIT = "image", "label", "split"
ROLES = (IMAGE, LABEL, SPLIT)


@dataclass(frozen=True)
class Columns:
    """Columns by what they are for.

    Attributes:
        roles: the column of each role (``image``, ``label``, ``split``) that is named.
        targets: further columns; each becomes a target set of the cache.
    """

    roles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    targets: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.roles or self.targets)


def parse_columns(text: str | None) -> Columns:
    """Read ``image=file,label=species,age``: a role and its column, or the column of a target set.

    Raises:
        UserError: for an unknown role, an empty name, or one that comes twice.
    """
    roles: dict[str, str] = {}
    targets: list[str] = []
    for part in text.split(",") if text is not None else ():
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not role or (equals and not column):
            raise UserError(
                f"columns is {text!r}: write image=COLUMN,label=COLUMN, and further columns by their names."
            )
        if not equals:
            targets.append(role)
        elif role not in ROLES:
            raise UserError(f"columns names {role!r}: choose one of {', '.join(ROLES)}{nearest(role, list(ROLES))}.")
        elif role in roles:
            raise UserError(f"columns is {text!r}, which names {role!r} twice: leave one out.")
        else:
            roles[role] = column
    if len({*targets}) < len(targets):
        raise UserError(f"columns is {text!r}, which names a column twice: leave one out.")
    return Columns(roles, tuple(targets))
