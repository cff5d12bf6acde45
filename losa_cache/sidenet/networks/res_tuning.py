"""The bypass of Res-Tuning: bottlenecks beside the frozen backbone. *Not from the paper*, whose Table 1 has it as
RS-Bypass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.network import Sizes, require_shape
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.spec import SideSpec

SPEC = SideSpec(start=False)


class Tuner(nn.Module):
    """x + W_u GELU(W_d x + b_d) + b_u, ``(..., width)`` to the same: Res-Adapter, with its authors' Xavier start."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return x + self.up(F.gelu(self.down(x)))


class ResTuning(nn.Module):
    """x_l = lambda_l T_l(b_l) + (1 - lambda_l) T'_l(x_{l-1}), of which the frozen tail reads x_k.

    Res-Tuning-Bypass of Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from
    Backbone", NeurIPS 2023: T and T' are :class:`Tuner`, lambda is the sigmoid of a trained number, zero at the start.

    There x_0 is the embedding. Here the first chosen block's output is x_1, so 2 (k - 1) tuners are left of 2 k: *not
    from the publication*. Table 1 of LoSA gives it 0.42 M parameters; the width of its tuners is not known to us, so no
    count is tested.

    Args:
        depth: number k of block outputs.
        tokens: tokens n of a block output.
        width: channels d of a block output.
        rank: inner width of the tuners.

    Raises:
        UserError: for a size below 1, or a rank above the width.
    """

    def __init__(self, *, depth: int, tokens: int, width: int, rank: int) -> None:
        super().__init__()
        require_shape(depth, tokens, width, rank)
        self.depth, self.tokens, self.width, self.rank = depth, tokens, width, rank
        self.lateral = nn.ModuleList(Tuner(width, rank) for _ in range(depth - 1))
        self.vertical = nn.ModuleList(Tuner(width, rank) for _ in range(depth - 1))
        self.gate = nn.Parameter(torch.zeros(depth - 1))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        return 4 * (self.depth - 1) * self.tokens * self.width * self.rank

    def forward(self, blocks: Sequence[Block], readout: Readout | None = None) -> Tensor:
        """Run the bypass.

        Args:
            blocks: k block outputs ``(batch, n, d)``, first to last.
            readout: of the rows that are wanted; all by default.

        Raises:
            ValueError: for another number of blocks.
        """
        if len(blocks) != self.depth:
            raise ValueError(f"a side network of depth {self.depth} takes {self.depth} outputs, not {len(blocks)}.")
        readout = readout or Whole()
        first, *others = dense(blocks)
        x = first.to(self.gate.dtype)
        for b, lateral, vertical, share in zip(others, self.lateral, self.vertical, self.gate.sigmoid(), strict=True):
            x = torch.lerp(vertical(x), lateral(b.to(x.dtype)), share)
        return readout.rows(x).to(wide(first))


def build(sizes: Sizes) -> ResTuning:
    """Build one; a video's tokens are treated like an image's."""
    return ResTuning(depth=sizes.depth, tokens=sizes.tokens, width=sizes.width, rank=sizes.rank)
