"""Full fine-tuning: every weight of the backbone is trained."""

from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="full fine-tuning", source="", lr=1e-4, tail=True)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Train everything."""
    trunk.model.requires_grad_(True)
