"""Convpass: convolutional bypasses parallel to the attention and to the MLP of every block.

Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", 2022 (arXiv 2207.07039): x becomes
x + MHSA(LN(x)) + s Conv(LN(x)), and the same of the MLP. Conv is W_u f(C(f(W_d x))) on the grid of patches, with a 3 x 3
convolution C of 8 channels. The class token is an image of one pixel, of which C sees the centre. As in the authors'
code f is x sigmoid(1.702 x), W_d starts Xavier-uniform, C as the identity, all else zero: the model starts as
itself. Their dropout of 0.1 is left out. s, which they choose for each task, is 1.

24 (2 * 768 * 8 + 8 + 768 + 9 * 8 * 8 + 8) = 327,552 parameters at the default width 8 are their 0.33 M (Table 1 of
LoSA has it, too).

Registers are images of one pixel, too, and frames of a video images of their own: *not from the publication*.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.tuned.inserted import BRANCHES, Beside, Bottleneck, around_branches, require_rank
from losa_cache.tuned.spec import MethodSpec
from losa_cache.tuned.trunk import Trunk

SPEC = MethodSpec(label="Convpass", source="Jie and Deng, 2022", rank=8)


def quick_gelu(x: Tensor) -> Tensor:
    """Give x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class Convpass(Bottleneck):
    """The bypass: ``(batch, tokens, width)`` to the same.

    Args:
        width: channels d.
        rank: channels of the convolution.
        prefix_tokens: tokens that are no patches.
        grid: rows and columns of the patches, frames before them.
    """

    def __init__(self, width: int, rank: int, *, prefix_tokens: int, grid: Sequence[int]) -> None:
        super().__init__(width, rank, quick_gelu)
        self.prefix_tokens, self.grid = prefix_tokens, tuple(grid)
        self.conv = nn.Conv2d(rank, rank, 3, padding=1)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        for tensor in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            assert tensor is not None
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the patches of each frame; their channels are the last axis in memory, before and after."""
        hidden = self.activation(self.down(x))
        prefix, patches = hidden.tensor_split([self.prefix_tokens], dim=1)
        frames = patches.reshape(-1, *self.grid[-2:], hidden.shape[-1]).permute(0, 3, 1, 2)
        found = self.conv(frames).permute(0, 2, 3, 1).reshape(patches.shape)
        if self.prefix_tokens:
            alone = F.linear(prefix, self.conv.weight[:, :, 1, 1], self.conv.bias)
            found = torch.cat((alone, found), dim=1)
        return self.widen(self.activation(found))


def insert(trunk: Trunk, *, rank: int, variant: str | int | None) -> None:
    """Put a bypass of ``rank`` channels beside every attention and every MLP."""
    require_rank(trunk, rank)
    for kind in BRANCHES:
        around_branches(
            trunk,
            kind,
            Beside,
            lambda: Convpass(trunk.width, rank, prefix_tokens=trunk.prefix_tokens, grid=trunk.grid),
        )
