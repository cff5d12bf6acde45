"""Which columns of a data set become target sets of its caches."""

from collections.abc import Mapping
from dataclasses import dataclass

from losa_cache.data.columns import GROUP, WEIGHT
from losa_cache.errors import UserError
from losa_cache.targets.check import target_name
from losa_cache.targets.target_set import CLASS, NUMBERS


@dataclass(frozen=True)
class TargetColumn:
    """A column that becomes a target set: its name, and the kind; ``None``: as the values say."""

    column: str
    kind: str | None


def target_columns(roles: Mapping[str, str], targets: Mapping[str, str | None]) -> dict[str, TargetColumn]:
    """Say which columns become target sets, by the names of these.

    Args:
        roles: the column of each role; those of groups and weights become the target sets ``group`` and ``weight``.
        targets: further columns, and the kind of each (``Columns.targets``).

    Raises:
        UserError: for two columns of one name.
    """
    kinds = {GROUP: CLASS, WEIGHT: NUMBERS}
    named = {role: TargetColumn(roles[role], kind) for role, kind in kinds.items() if role in roles}
    for column, kind in targets.items():
        if (name := target_name(column)) in named:
            raise UserError(f"columns {named[name].column!r} and {column!r} would both be the target set {name!r}.")
        named[name] = TargetColumn(column, kind)
    return named
