"""All biases are trained: Ben Zaken et al., "BitFit" (ACL 2022), section 3.

In a ViT these are the biases of the patch embedding, of every linear layer and of every norm, the final one among them:
0.10 M of ViT-B/16.
"""

from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="BitFit", source="Ben Zaken et al., ACL 2022", lr=1e-3, tail=True)


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Train the biases: timm's layers call them ``bias``, BEiT's attention ``q_bias`` and ``v_bias``."""
    for name, parameter in trunk.model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in ("bias", "q_bias", "v_bias"))
