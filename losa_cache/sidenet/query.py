"""Attention by one learned query, which ``fusion`` and ``attentive`` (``networks/``) share.

*Not from the paper*. Both are the attentive probe of CAE (Chen et al., arXiv 2202.03026) in the form of attentive layer
fusion (Ciernik et al., arXiv 2601.09322, and the code released with it): layer norms of query, keys and values, no
biases in front of the heads, heads twice as wide as usual, batch normalisation in front of the classifier. They replace
the frozen tail, and do not start as the linear probe.

The query does not depend on the sample, so neither keys nor values are computed. A head's query is multiplied by the
keys' matrix once in a step, and the values' matrix is applied to the weighted mean of the tokens. This is exact, and a
token costs 2 d multiplications a head instead of 4 d^2 for all heads (for a sample of ViT-S, with 257 tokens, 1.6 M
instead of 150 M). Two biases are left out, because nothing depends on them: that of the keys' norm adds the same number
to all scores of a head, and batch normalisation removes that of the matrix behind the heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.noise import Noise
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.products import compute_dtype, wide

EPS = 1e-5  # of the layer norms
MOMENTUM = 0.1  # of the running statistics
QUERY_STD = 0.02
DROPOUT = 0.1  # of attention: the middle of the values 0, 0.1 and 0.3 that are published
SHARE = 0.5  # of the samples that are jittered
GATE, JITTERED, DROPPED = range(3)  # streams of noise


def attend(
    rows: Tensor, own: Mapping[str, Tensor], *, heads: int, dropout: float, jitter: float, seed: int, training: bool
) -> Tensor:
    """Compute the features of K networks that read the same rows.

    Args:
        rows: ``(batch, n, d)``.
        own: parameters and statistics by their name in :class:`OneQuery`, each with the trial first. In training the
            statistics are updated in place.
        heads: H.
        dropout, jitter, seed: as of :class:`OneQuery`. The noise is the same for all trials.
        training: whether noise is added and the batch is normalised by its own statistics. A single sample has no such
            statistics: it is normalised as in evaluation.

    Returns:
        ``(K, batch, d)``, in float32 or wider.
    """
    trials, width = own["query"].shape
    batch, count, _ = rows.shape
    steps = own["steps"]
    rows = rows.to(torch.promote_types(wide(rows), own["query"].dtype))
    if training and jitter:
        chosen = Noise(seed, steps[0], GATE).uniform((batch, 1, 1)) < SHARE
        noise = Noise(seed, steps[0], JITTERED).normal(rows.shape)
        rows = F.normalize(rows, dim=-1) + jitter * chosen * noise.to(rows)
    rows = F.layer_norm(rows, (width,), eps=EPS).to(compute_dtype(rows, own["query"]))

    query = F.layer_norm(own["query"], (width,), eps=EPS) * own["query_scale"] + own["query_shift"]
    query = (own["to_query"] @ query[..., None]).view(trials, heads, 1, -1)
    folded = query @ own["to_keys"].view(trials, heads, -1, width) * query.shape[-1] ** -0.5
    folded = folded.view(trials, heads, width) * own["key_scale"][:, None]
    attention = F.linear(rows, folded.flatten(0, 1)).mT.softmax(-1)  # (batch, K H, n)
    if training and dropout:
        kept = Noise(seed, steps[0], DROPPED).uniform((batch, heads, count)) >= dropout
        attention = attention * (kept / (1 - dropout)).to(attention).repeat(1, trials, 1)
    means = (attention.to(rows) @ rows).view(batch, trials, heads, width).permute(1, 2, 0, 3)
    total = attention.sum(-1).view(batch, trials, heads, 1).permute(1, 2, 0, 3)  # 1, but for what was dropped
    means = means * own["value_scale"][:, None, None] + total * own["value_shift"][:, None, None]
    values = means @ own["to_values"].view(trials, heads, -1, width).mT  # (K, H, batch, h)
    found = values.transpose(1, 2).flatten(2) @ own["out"].mT
    return _batch_normed(found.to(wide(found)), own, training=training)


def _batch_normed(x: Tensor, own: Mapping[str, Tensor], *, training: bool) -> Tensor:
    """Normalise ``(K, batch, d)`` over the batch, every trial by itself."""
    trials, batch, width = x.shape
    if training:
        own["steps"].add_(1)
    flat = F.batch_norm(
        x.transpose(0, 1).reshape(batch, trials * width),
        own["mean"].view(-1),
        own["variance"].view(-1),
        own["scale"].view(-1),
        own["shift"].view(-1),
        training=training and batch > 1,
        momentum=MOMENTUM,
        eps=EPS,
    )
    return flat.view(batch, trials, width).transpose(0, 1)


class OneQuery(nn.Module, ABC):
    """One learned query that reads rows or tokens and gives a feature vector.

    Args:
        width: channels d.
        heads: H, each of 2 floor(d / H) channels.
        seed: of the noise.
        dropout: of attention.
        jitter: standard deviation of the noise that is added to half of the samples, their rows brought to unit length
            first; 0: none.
    """

    def __init__(self, *, width: int, heads: int, seed: int = 0, dropout: float = DROPOUT, jitter: float = 0.0) -> None:
        super().__init__()
        inner = heads * 2 * max(1, width // heads)
        self.heads, self.seed, self.dropout, self.jitter = heads, seed, dropout, jitter
        self.query = nn.Parameter(torch.randn(width) * QUERY_STD)
        self.query_scale, self.query_shift = _affine(width)
        self.key_scale = nn.Parameter(torch.ones(width))
        self.value_scale, self.value_shift = _affine(width)
        self.to_query, self.to_keys, self.to_values = (_matrix(inner, width) for _ in range(3))
        self.out = _matrix(width, inner)
        self.scale, self.shift = _affine(width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def rows(self, blocks: Sequence[Block]) -> Tensor:
        """Give the rows ``(batch, n, d)`` of the block outputs that are attended to."""

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Give the features ``(batch, d)``, in float32 or wider, of the block outputs ``(batch, tokens, d)``."""
        own = {name: value[None] for name, value in self.named_tensors().items()}
        return attend(self.rows(blocks), own, **self.options(), training=self.training)[0]

    def named_tensors(self) -> dict[str, Tensor]:
        """Give parameters and statistics by name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def options(self) -> dict[str, Any]:
        """Give the options of :func:`attend`."""
        return {"heads": self.heads, "dropout": self.dropout, "jitter": self.jitter, "seed": self.seed}


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.Linear(columns, rows, bias=False).weight.detach())


def _affine(width: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
