"""The scales and shifts of all norms are trained, those of the final one among them.

In the manner of Frankle, Schwab and Morcos, "Training BatchNorm and Only BatchNorm" (ICLR 2021), for the layer norms of
a ViT.
"""

from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="norms", source="", lr=1e-3, tail=True)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Train every norm."""
    for module in trunk.model.modules():
        if "norm" in type(module).__name__.lower() and not any(module.children()):
            module.requires_grad_(True)
