"""What stage two trains: side network and classifier around the frozen tail."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.sidenet.ladder import Ladder
from losa_cache.sidenet.losa import LoSA, LowRankMLP
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.sidenet.query import Attentive, Fusion, OneQuery
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.sidenet.video import VideoLoSA

SIDES = {"losa": LoSA, "mlp": LowRankMLP, "ladder": Ladder, "linear": None}
"""Side networks: the paper's, those of its Table 3, and none."""
QUERIES = ("fusion", "attentive")
"""Attention by one query, in their place (*not from the paper*)."""
FOLD = ("losa", "mlp")
"""Those that take int8 codes as they are."""


class Adapter(nn.Module):
    """Block outputs to logits: side network, frozen tail, classifier.

    With ``side="linear"`` there is no side network: y_k = y_0, the linear probe. ``losa``, ``mlp`` and ``ladder`` start
    as exactly that probe, since their updates start at zero and the classifier is drawn first. ``fusion`` and
    ``attentive`` refine nothing: what they make of the blocks is the feature vector, in place of the frozen tail's.

    Args:
        side: which of ``SIDES`` or ``QUERIES``.
        depth: number k of the side network's inputs; those of ``losa_cache.points.LAST_ONLY`` look at the last only.
        tokens: tokens n of a block output.
        width: channels d of a block output.
        rank: r, of a ladder the width; not used by the linear probe, ``fusion`` and ``attentive``.
        classes: number of classes, at least 2.
        tail: the backbone's frozen tail.
        seed: of the random start, and of the noise in training.
        grid: frames, rows and columns of a video's tokens, behind any prefix tokens: a LoSA mixes space and time apart.
    """

    def __init__(
        self,
        *,
        side: str,
        depth: int,
        tokens: int,
        width: int,
        rank: int,
        classes: int,
        tail: FrozenTail,
        seed: int = 0,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.side: nn.Module | None
        if side not in (*SIDES, *QUERIES):
            raise ValueError(f"unknown side network {side!r}; known: {', '.join((*SIDES, *QUERIES))}.")
        if classes < 2:
            raise UserError(f"the data set has {classes} class(es): a classifier needs at least 2.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(width, classes)
            nn.init.trunc_normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)
            if side in QUERIES:
                self.side = self._query(side, tail, depth=depth, tokens=tokens, width=width, seed=seed)
            else:
                self.side = self._side(side, grid, depth=depth, tokens=tokens, width=width, rank=rank)
        self.tail, self.tokens = tail, tokens

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Logits ``(batch, classes)`` from the side network's inputs ``(batch, tokens, width)``, y_0 the last."""
        if isinstance(self.side, OneQuery):
            return self.classifier(self.side(blocks))
        readout = self.tail.readout(self.tokens)
        rows = readout.rows(dense(blocks[-1:])[0]) if self.side is None else self.side(blocks, readout)
        return self.classifier(self.tail.from_rows(rows))

    @staticmethod
    def _side(side: str, grid: Sequence[int] | None, *, tokens: int, **sizes: int) -> nn.Module | None:
        if side == "losa" and grid is not None:
            frames, rows, columns = grid
            prefix = tokens - frames * rows * columns
            return VideoLoSA(frames=frames, places=rows * columns, prefix=prefix, **sizes)
        build = SIDES[side]
        return None if build is None else build(tokens=tokens, **sizes)

    @staticmethod
    def _query(side: str, tail: FrozenTail, *, depth: int, tokens: int, width: int, seed: int) -> OneQuery:
        if side == "attentive":
            return Attentive(width=width, seed=seed)
        return Fusion(depth=depth, tokens=tokens, width=width, pooling=pooling_of(tail.config), seed=seed)

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: an adapter file holds these and no frozen ones."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("tail.")}

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters of the side network (what the paper's tables count) and of the classifier."""
        side = 0 if self.side is None else sum(p.numel() for p in self.side.parameters())
        return {"side": side, "classifier": sum(p.numel() for p in self.classifier.parameters())}
