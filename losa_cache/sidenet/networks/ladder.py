"""The ladder of Table 3: a small transformer beside the backbone, after LST (Sung et al., NeurIPS 2022)."""

from collections.abc import Sequence

from torch import Tensor, nn

from losa_cache.sidenet.network import Sizes, require_shape
from losa_cache.sidenet.operand import Block, dense, split_start
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.spec import SideSpec

SPEC = SideSpec()
HEAD_WIDTH = 16


class Ladder(nn.Module):
    """h_0 = D_0 y_0, h_i = T_i(h_{i-1} + D_i b_i), y_k = y_0 + U h_k, with T_i a pre-norm transformer block of width r.

    The paper calls it "Transformer" (r = 48, 27 M parameters on ViT-g). The rest is *not from the paper*: the sum in
    place of LST's gates, heads of 16 channels, and U zero at the start, so that it starts as the linear probe. The 27 M
    parameters are reached only if T_i's MLP is as wide as the backbone's own, 6144 in ViT-g.

    Args:
        depth: number k of block outputs.
        tokens: tokens n of a block output.
        width: channels d of a block output.
        rank: width r of the ladder.
        hidden: width of its MLPs; by default 4 d.

    Raises:
        UserError: for a size below 1, or a rank above the width.
    """

    def __init__(self, *, depth: int, tokens: int, width: int, rank: int, hidden: int | None = None) -> None:
        super().__init__()
        require_shape(depth, tokens, width, rank)
        heads = rank // HEAD_WIDTH if rank % HEAD_WIDTH == 0 else 1
        self.depth, self.tokens, self.width, self.rank = depth, tokens, width, rank
        self.hidden = hidden or 4 * width
        self.down = nn.ModuleList(nn.Linear(width, rank) for _ in range(depth + 1))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                rank, heads, self.hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample's forward pass."""
        projections = (self.depth + 2) * self.width * self.rank
        layers = self.depth * (4 * self.rank**2 + 2 * self.rank * self.hidden + 2 * self.tokens * self.rank)
        return self.tokens * (projections + layers)

    def forward(self, blocks: Sequence[Block], readout: Readout | None = None) -> Tensor:
        """Refine the backbone's output (arguments and result as of :meth:`LoSA.forward`)."""
        inputs, y = split_start(blocks, self.depth)
        readout = readout or Whole()
        weight = self.up.weight.dtype
        hidden: Tensor = self.down[0](y.to(weight))
        for b, down, block in zip(dense(inputs), self.down[1:], self.blocks, strict=True):
            hidden = block(hidden + down(b.to(weight)))
        return readout.rows(y) + self.up(readout.rows(hidden)).to(wide(y))


def build(sizes: Sizes) -> Ladder:
    """Build a ladder of width r; a video's tokens are treated like an image's."""
    return Ladder(depth=sizes.depth, tokens=sizes.tokens, width=sizes.width, rank=sizes.rank)
