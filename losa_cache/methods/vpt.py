"""Visual prompt tuning: trained tokens beside those of the image.

Jia et al., "Visual Prompt Tuning", ECCV 2022, section 3.2. ``deep``: every block has prompts of its own, and what it
makes of them is dropped. ``shallow``: prompts at the first block, which go through all of them. They start uniform
up to sqrt(6 / (3 p^2 + d)) with patches of p x p pixels, as in the authors' code. ``--rank`` is their number, which
the authors choose for each task; the default 10 is *not from the publication*.

``deep`` has 12 * 10 * 768 = 92,160 parameters at 10 prompts, ``shallow`` 7,680. The 0.53 M in Table 1 of LoSA are a
mean of numbers chosen for each task, so no number gives them.

The prompts follow all other tokens. The publication puts them behind the class token; attention does not see an
order, and so nothing has to be moved to take them away. Outside the blocks they are never among the tokens.
"""

from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="VPT", source="Jia et al., ECCV 2022", rank=10, variants=("shallow", "deep"))
POSITIONS = ("rope", "rel_pos_bias", "shared_rel_pos", "rel_pos", "relative_position_bias_table")
"""Where timm's models and attentions keep positions that they see between tokens."""
CARRIED = "prompts"
"""The attribute of a block's output in which ``shallow`` hands on what the block made of the prompts."""


class Prompted(nn.Module):
    """A block that sees prompts of its own, and gives the other tokens: ``(batch, n, width)`` to the same."""

    def __init__(self, block: nn.Module, prompts: Tensor) -> None:
        super().__init__()
        self.block, self.prompts = block, nn.Parameter(prompts)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Put the prompts behind the tokens, and drop what becomes of them."""
        prompts = self.prompts.to(x.dtype).expand(x.shape[0], -1, -1)
        return self.block(torch.cat((x, prompts), dim=1), *args, **options)[:, : x.shape[1]]


class Handing(nn.Module):
    """A block of ``shallow``: it sees the prompts that come with the tokens, and hands on what becomes of them.

    They travel with the tensor of tokens, not in a module: so a block that is computed again for its gradient sees the
    prompts of its own pass.
    """

    def __init__(self, block: nn.Module, prompts: Tensor | None) -> None:
        super().__init__()
        self.block = block
        self.prompts = None if prompts is None else nn.Parameter(prompts)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Put the prompts behind the tokens, and take them off again."""
        prompts = getattr(x, CARRIED) if self.prompts is None else self.prompts.to(x.dtype).expand(x.shape[0], -1, -1)
        y = self.block(torch.cat((x, prompts), dim=1), *args, **options)
        tokens, prompts = y.tensor_split([x.shape[1]], dim=1)
        setattr(tokens, CARRIED, prompts)
        return tokens


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Let every block see ``rank`` prompts."""
    if not 1 <= rank <= 2**12:
        raise UserError(f"rank is {rank}: choose a number of prompts from 1 to {2**12}.")
    if any(getattr(module, name, None) is not None for module in trunk.model.modules() for name in POSITIONS):
        raise UserError(
            f"the attention of backbone {trunk.name!r} sees positions, which prompts have none of: choose a ViT with "
            "absolute positions, or another method."
        )
    patch = trunk.model.patch_embed.patch_size  # type: ignore[union-attr]
    bound = sqrt(6 / (3 * prod(patch) + trunk.width))  # type: ignore[arg-type]

    def prompts() -> Tensor:
        own = next(trunk.model.parameters())
        return torch.empty(rank, trunk.width).uniform_(-bound, bound).to(own.device, own.dtype)

    blocks = trunk.model.blocks
    assert isinstance(blocks, nn.Sequential | nn.ModuleList)
    for at, block in enumerate(blocks):
        if variant == "deep":
            blocks[at] = Prompted(block, prompts())
        else:
            blocks[at] = Handing(block, None if at else prompts())
