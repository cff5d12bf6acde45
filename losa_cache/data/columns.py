"""The columns of a table that a data set takes, as ``--columns`` writes them. This module imports no library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from losa_cache.errors import UserError, nearest

IMAGE, LABEL, SPLIT, GROUP, WEIGHT = "image", "label", "split", "group", "weight"
ROLES = (IMAGE, LABEL, SPLIT, GROUP, WEIGHT)
NAMES = {
    IMAGE: ("path", "file", "image", "filename", "filepath", "file_name", "file_path", "image_path"),
    LABEL: ("label", "class", "target"),
    SPLIT: ("split",),
    GROUP: ("group",),
    WEIGHT: ("weight",),
}
"""Columns that have a role without being named, in any case."""
KINDS = ("class", "multilabel", "numbers")
"""Kinds of target sets that a column can be read as (``losa_cache.targets.target_set``)."""


@dataclass(frozen=True)
class Columns:
    """Columns by what they are for.

    Attributes:
        roles: the column of each role (one of ``ROLES``) that is named.
        targets: further columns, each of which becomes a target set of the cache: its kind, or ``None`` where the cells
            say it, by column.
    """

    roles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    targets: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))

    def __bool__(self) -> bool:
        return bool(self.roles or self.targets)

    def settled(self, conventional: Mapping[str, Sequence[str]]) -> "Columns":
        """Give a bare name that is conventional for a role, which no column is named for, that role.

        Args:
            conventional: names in lower case, by role.

        Raises:
            UserError: for two such names of one role.
        """
        roles, targets = dict(self.roles), dict(self.targets)
        for role, names in conventional.items():
            bare = [column for column, kind in targets.items() if kind is None and column.lower() in names]
            if role in roles or not bare:
                continue
            if len(bare) > 1:
                raise UserError(
                    f"columns names {bare[0]!r} and {bare[1]!r}, each of which may be the {role}: say which is it with "
                    f"{role}={bare[0]}."
                )
            roles[role] = bare[0]
            del targets[bare[0]]
        return replace(self, roles=roles, targets=targets)


def parse_columns(text: str | None) -> Columns:
    """Read ``image=file,label=species,age:numbers``: a role and its column, or the column of a target set and its kind.

    Raises:
        UserError: for an unknown role, an empty name, or one that comes twice.
    """
    roles: dict[str, str] = {}
    targets: dict[str, str | None] = {}
    for part in text.split(",") if text is not None else ():
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not role or (equals and not column):
            raise UserError(
                f"columns is {text!r}: write image=COLUMN,label=COLUMN, and further columns by their names."
            )
        if not equals:
            name, _, kind = role.rpartition(":")
            column, read_as = (name, kind) if name and kind in KINDS else (role, None)
            if column in targets:
                raise UserError(f"columns is {text!r}, which names {column!r} twice: leave one out.")
            targets[column] = read_as
        elif role not in ROLES:
            raise UserError(f"columns names {role!r}: choose one of {', '.join(ROLES)}{nearest(role, list(ROLES))}.")
        elif role in roles:
            raise UserError(f"columns is {text!r}, which names {role!r} twice: leave one out.")
        else:
            roles[role] = column
    return Columns(roles, targets)
