"""What stage two trains for dense tasks: side network and decoder, from block outputs to outputs of every patch.

*Not from the paper*, which classifies images and videos.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.points import ALL_LAYERS, CONV, LAST
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.decoder import DETAIL, HIDDEN, Decoders, Layer
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.pooled import Pooling, pooling_of
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.readout import Whole
from losa_cache.sidenet.tail import FrozenTail


class DenseAdapter(Adapter):
    """Block outputs to maps: side network, norm of every token, decoder.

    Args:
        dense: ``decoder``, one of ``losa_cache.points.DECODERS``, and ``grid``: rows and columns of patches.
        head: ``last``: the decoder reads y_k, normed by the frozen tail. ``all``: the side network reads layer-normed
            blocks and y_0, without the norms' parameters, and the decoder reads y_k and all blocks but y_0.
        points: blocks that are read, y_0 among them, for ``head="all"``.
        side, depth, tokens, width, rank, classes, tail, seed: as of :class:`~losa_cache.sidenet.adapter.Adapter`;
            ``classes`` are the outputs of a patch.

    Attributes:
        grid: rows and columns of patches.
        prefix: tokens before those of the patches.
        before: the decoder's layers before ``classifier``, which is its last one: none, or two of ``conv``. Of
            ``conv`` rows and columns of outputs are ``DETAIL`` times those of the grid.

    Raises:
        UserError: for a side network that gives no tokens.
        ValueError: for a grid that is not that of the tokens.
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
        dense: Mapping[str, Any],
        seed: int = 0,
        head: str = LAST,
        points: int = 1,
    ) -> None:
        sizes: dict[str, Any] = {"depth": depth, "tokens": tokens, "width": width, "rank": rank, "seed": seed}
        super().__init__(side=side, classes=classes, tail=tail, **sizes)
        if not self.spec.tail:
            raise UserError(f"side network {side!r} gives one vector an image, of which no map can be made.")
        rows, columns = self.grid = tuple(dense["grid"])
        self.prefix = tokens - rows * columns
        if self.prefix != tail.config["prefix_tokens"]:
            raise ValueError(f"{tokens} tokens are not {rows} x {columns} patches and {tail.config['prefix_tokens']}")
        self.pooling = pooling_of(tail.config) if head == ALL_LAYERS else None
        features = width if self.pooling is None else points * width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.before = nn.ModuleList()
            if dense["decoder"] == CONV:
                self.before += [nn.Linear(features, HIDDEN), nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1)]
                self.classifier = nn.Linear(features + HIDDEN, classes * DETAIL**2)
            else:
                self.classifier = nn.Linear(features, classes)
            nn.init.trunc_normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.weight[:, features:])
            nn.init.zeros_(self.classifier.bias)

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Outputs ``(batch, classes, rows, columns)`` from the side network's inputs, y_0 the last."""
        return self._decoded(*self._patches(normed(blocks, self.pooling)))

    def refined(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor | None]:
        """Run the side network.

        Returns:
            what :meth:`outputs` takes: the tokens that the decoder reads of every patch, one behind the other and y_k
            the last, ``(batch, P, F)``; and ``None``.
        """
        return self.refined_of(normed(blocks, self.pooling)), None

    def refined_of(self, blocks: Sequence[Block]) -> Tensor:
        """Do the same from blocks that are layer-normed already, if it norms them."""
        others, y = self._patches(blocks)
        return torch.cat([*others, y.to(wide(y))], 2)

    def outputs(self, refined: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute outputs ``(batch, classes, rows, columns)`` from what :meth:`refined` gives."""
        *others, y = refined.split(self.tail.config["width"], 2)
        return self._decoded(others, y)

    def features(self, refined: Tensor, rows: Tensor | None = None) -> Tensor:
        """Average y_k over the patches, to a vector a sample, ``(batch, width)``."""
        return refined[..., -self.tail.config["width"] :].mean(1)

    @property
    def feature_length(self) -> int:
        """Length of the vector that :meth:`features` gives."""
        return int(self.tail.config["width"])

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters of the side network and of the decoder, which stands in the classifier's place."""
        decoder = [*self.before.parameters(), *self.classifier.parameters()]
        side = sum(p.numel() for p in self.side.parameters())
        return {"side": side, "classifier": sum(p.numel() for p in decoder)}

    def _patches(self, blocks: Sequence[Block]) -> tuple[Sequence[Tensor], Tensor]:
        return patches_of(self.side, blocks, self.tail, self.pooling, self.prefix)

    def _decoded(self, others: Sequence[Tensor], y: Tensor) -> Tensor:
        layers: list[Layer] = [(own.weight[None], own.bias[None]) for own in (self.classifier, *self.before)]
        return Decoders(*layers)(others, y[None], self.grid)[0]


def normed(blocks: Sequence[Block], pooling: Pooling | None) -> Sequence[Block]:
    """Layer-norm blocks where there is a pooling; without one they stay as they are."""
    return blocks if pooling is None else dense([pooling.read(block)[0] for block in blocks])


def patches_of(
    side: nn.Module, blocks: Sequence[Block], tail: FrozenTail, pooling: Pooling | None, prefix: int
) -> tuple[Sequence[Tensor], Tensor]:
    """Run a side network, or a stack of them, and take the tokens of the patches.

    Args:
        side: on blocks and a readout.
        blocks: as :func:`normed` gives them, ``(batch, n, d)``; y_0 is the last.
        tail: whose norms are for y_k, where there is no pooling.
        pooling: as of :func:`normed`.
        prefix: tokens before those of the patches.

    Returns:
        with a pooling the tokens of all blocks but y_0, ``(batch, P, d)`` each; and those of y_k, ``(..., batch, P,
        d)``.
    """
    y = side(blocks, Whole())[..., prefix:, :]
    if pooling is None:
        return (), tail.fc_norm(tail.norm(y))
    return [block[:, prefix:] for block in dense(blocks[:-1])], y
