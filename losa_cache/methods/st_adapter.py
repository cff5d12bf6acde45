"""ST-Adapter: a bottleneck with a convolution over time in every block of a video model.

Pan et al., "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", NeurIPS 2022: between attention and
MLP x becomes x + DWConv3D(x W_d + b_d) W_u + b_u, on the patches alone; the convolution is depth-wise. Place, kernel
(3 steps in time, one patch), width 384 and start (the convolution and all biases zero, so that the model starts as
itself; the rest as linear layers of torch) are those of the authors' code for Kinetics-400, which has no activation.
A step in time is a frame there and a tubelet here.

12 (2 * 768 * 384 + 384 + 768 + 3 * 384 + 384) = 7,110,144 parameters, 8 % of ViT-B, as the abstract says.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.errors import UserError
from losa_cache.tuned.inserted import like, require_rank
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="ST-Adapter", source="Pan et al., NeurIPS 2022", lr=5e-4, rank=384, video=True)
PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
"""What a plain block of timm's consists of."""


class STAdapter(nn.Module):
    """The update of the patches: ``(batch, patches, width)`` to the same.

    Args:
        width: channels d.
        rank: inner width.
        grid: steps in time, rows and columns; patches lie in that order.

    Attributes:
        elementwise_macs: multiply-accumulates of the convolution for a clip, which no product of matrices does.
    """

    def __init__(self, width: int, rank: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        self.kernel, self.bias = nn.Parameter(torch.zeros(3, rank)), nn.Parameter(torch.zeros(rank))
        self.steps, self.elementwise_macs = grid[0], 3 * rank * prod(grid)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over time: every patch with the same place one step before and one after."""
        hidden = self.down(x).unflatten(1, (self.steps, -1))
        before, now, after = self.kernel.to(hidden.dtype)
        padded = F.pad(hidden, (0, 0, 0, 0, 1, 1))
        mixed = torch.addcmul(self.bias.to(hidden.dtype), hidden, now)
        mixed = torch.addcmul(mixed, padded[:, :-2], before)
        mixed = torch.addcmul(mixed, padded[:, 2:], after)
        return self.up(mixed.flatten(1, 2))


class Between(nn.Module):
    """A plain block with an adapter between its branches: ``(batch, n, width)`` to the same."""

    def __init__(self, block: nn.Module, adapter: STAdapter, prefix_tokens: int) -> None:
        super().__init__()
        self.block, self.adapter, self.prefix_tokens = block, adapter, prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Attend, adapt the patches, and go through the MLP."""
        norm1, attn, ls1, drop1, norm2, mlp, ls2, drop2 = (getattr(self.block, part) for part in PARTS)
        x = x + drop1(ls1(attn(norm1(x))))
        prefix, patches = x.tensor_split([self.prefix_tokens], dim=1)
        x = torch.cat((prefix, patches + self.adapter(patches)), dim=1)
        return x + drop2(ls2(mlp(norm2(x))))


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Put an adapter of width ``rank`` into every block."""
    if len(trunk.grid) != 3:
        raise UserError(
            f"st-adapter is for videos, and backbone {trunk.name!r} takes images: choose a video model, as vivit_b, or "
            "another method."
        )
    require_rank(trunk, rank, default=SPEC.rank)
    blocks = trunk.model.blocks
    assert isinstance(blocks, nn.Sequential | nn.ModuleList)
    for at, block in enumerate(blocks):
        if not all(hasattr(block, part) for part in PARTS):
            raise UserError(f"the blocks of backbone {trunk.name!r} are no plain ones of a ViT: choose another method.")
        blocks[at] = Between(block, like(trunk, STAdapter(trunk.width, rank, trunk.grid)), trunk.prefix_tokens)
