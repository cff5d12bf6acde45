"""The MLP's weights of every block are trained.

In the manner of Touvron et al., "Three things everyone should know about Vision Transformers" (ECCV 2022), section 4.
"""

from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="MLP layers", source="Touvron et al., ECCV 2022", lr=1e-4)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Train the MLP layers."""
    trunk.train_parts("mlp")
