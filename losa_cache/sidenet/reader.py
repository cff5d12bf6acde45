"""The features of the classifier over all layers: pooled rows of every block and of y_k, weighted by learned queries.

*Not from the paper*. LoSA carries information of earlier layers through r columns into y_k. Here every head attends to
the rows of all blocks and to those that the side network refined, so the side network only has to add the information
that the means of the tokens lack. It is attentive layer fusion (Ciernik et al., arXiv 2601.09322) with fewer parameters
and no noise: the query of a head is learned in the space of the rows, the heads together are as wide as one row, and no
matrix follows them. Rows are standardised by the statistics of the training samples, not each by its own, because
similar images, such as those of one microscope, differ little from their mean. A layer norm replaces batch
normalisation, so that the samples of a batch do not depend on each other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.products import compute_dtype, wide

EPS = 1e-6  # of the layer norm
FLOOR = 0.1  # of a row's mean standard deviation: what varies less is not made larger than that by the division


class Reader(nn.Module):
    """Attention of H learned queries to rows, of one adapter or of K that read the same rows.

    Queries start at zero, so that every head starts at the mean of all rows.

    Args:
        points: number of blocks that are read.
        rows, width: m and d of a block's pooled rows. H is ``(points + 1) m``, a head for each row.

    Attributes:
        center, scale: ``((points + 1) m, d)``: the heads read ``(row - center) * scale``; not trained. The last m
            belong to the rows of y_k.
        queries: ``(H, d)`` or ``(K, H, d)``.
        values: ``(H, h, d)`` or ``(K, H, h, d)``; h is ``max(1, d // H)``.
    """

    def __init__(self, *, points: int, rows: int, width: int) -> None:
        super().__init__()
        heads = (points + 1) * rows
        self.center = nn.Parameter(torch.zeros(heads, width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(heads, width), requires_grad=False)
        self.queries = nn.Parameter(torch.zeros(heads, width))
        values = torch.empty(heads, max(1, width // heads), width)
        self.values = nn.Parameter(values.uniform_(-(width**-0.5), width**-0.5))  # as nn.Linear starts

    @property
    def features(self) -> int:
        """Length of the feature vector, H h."""
        return self.values.shape[-3] * self.values.shape[-2]

    @torch.no_grad()
    def standardise(self, rows: Tensor) -> None:
        """Set center and scale from the rows of training samples, ``(N, n, d)``."""
        added = len(self.center) - rows.shape[1]
        rows = rows.double()
        center, spread = rows.mean(0), rows.std(0, correction=0)
        spread = spread.clamp(min=torch.finfo(torch.float32).eps).maximum(FLOOR * spread.mean(1, keepdim=True))
        self.center.copy_(torch.cat([center, center[-added:]]))
        self.scale.copy_(1 / torch.cat([spread, spread[-added:]]))

    def forward(self, rows: Tensor, update: Tensor) -> Tensor:
        """Compute the features.

        Args:
            rows: of all blocks, ``(batch, n, d)``; those of y_0 are the last.
            update: what the side network adds to those of y_0, ``(batch, m, d)`` or ``(K, batch, m, d)``.

        Returns:
            ``(batch, H h)`` or ``(K, batch, H h)``, in float32 or wider, each vector layer-normed.
        """
        heads, width = self.queries.shape[-2:]
        queries = self.queries.view(-1, heads, width) * width**-0.5
        values = self.values.view(-1, *self.values.shape[-3:])
        batch, count, added = *rows.shape[:2], update.shape[-2]
        refined = (rows[:, -added:] + update - self.center[count:]) * self.scale[count:]
        refined, rows = refined.view(-1, batch, added, width), (rows - self.center[:count]) * self.scale[:count]
        dtype = compute_dtype(rows, queries)
        refined, rows, queries = refined.to(dtype), rows.to(dtype), queries.to(dtype)

        scores = F.linear(rows, queries.flatten(0, 1)).view(batch, count, -1, heads).permute(2, 0, 3, 1)
        own = (refined.flatten(1, 2) @ queries.mT).view(-1, batch, added, heads).mT
        attention = torch.cat([scores, own], -1).to(wide(scores)).softmax(-1).to(dtype)  # (K, batch, H, n + m)
        shared = attention[..., :count].transpose(0, 1).flatten(1, 2) @ rows
        means = shared.view(batch, -1, heads, width).transpose(0, 1) + attention[..., count:] @ refined
        found = (means.transpose(1, 2) @ values.to(dtype).mT).transpose(1, 2).flatten(2)  # (K, batch, H h)
        found = F.layer_norm(found.to(wide(found)), (self.features,), eps=EPS)
        return found.view(*update.shape[:-2], self.features)

    @classmethod
    def stacked(cls, readers: Sequence["Reader"]) -> "Reader":
        """Stack K readers of one shape, with the first one's center and scale; the trained tensors are copied."""
        together = cls(points=0, rows=1, width=1)
        together.center, together.scale = readers[0].center, readers[0].scale
        together.queries = nn.Parameter(torch.stack([own.queries for own in readers]).detach())
        together.values = nn.Parameter(torch.stack([own.values for own in readers]).detach())
        return together

    @torch.no_grad()
    def unstack(self, readers: Sequence["Reader"]) -> None:
        """Write each trial's tensors back into a reader."""
        for trial, reader in enumerate(readers):
            reader.queries.copy_(self.queries[trial])
            reader.values.copy_(self.values[trial])
            reader.center.copy_(self.center)
            reader.scale.copy_(self.scale)
