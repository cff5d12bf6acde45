"""The attention layers' weights of every block are trained: query, key, value and output projection.

In the manner of Touvron et al., "Three things everyone should know about Vision Transformers" (ECCV 2022), section 4.
"""

from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="attention layers", source="Touvron et al., ECCV 2022", lr=1e-4)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Train the attention layers."""
    trunk.train_parts("attn")
