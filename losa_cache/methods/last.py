"""The last K blocks and the final norm are trained."""

from losa_cache.errors import UserError
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="last blocks", source="", lr=1e-4, counts=True, tail=True)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Train the last ``variant`` blocks."""
    assert isinstance(variant, int)
    if variant > len(trunk.blocks):
        raise UserError(f"method is last:{variant}, and backbone {trunk.name!r} has {len(trunk.blocks)} blocks.")
    for module in (*trunk.blocks[-variant:], *trunk.final_norms):
        module.requires_grad_(True)
