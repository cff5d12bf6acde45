"""What training adds to a classifier over all layers, until it is folded into the weights. *Not from the paper*.

The logits are ``a * probe + b * own``: the probe reads the pooled rows of all layers as the frozen trunk gives them,
the side network's own classifier reads those of y_k. The two are trained apart, so that each learns the whole task,
and the shares a and b say how far each is to be trusted. Adding logits is averaging log probabilities.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losa_cache.sidenet.noise import Noise

UNKNOWN = (0.75, 0.25)  # shares where nothing is held out to fit them on
UPDATES = 3  # stream of noise, beside those of losa_cache.sidenet.query


class Blend(nn.Module):
    """Standardisation of the rows of y_k, dropout of their updates, and the shares; of one adapter, or of K.

    Args:
        rows, width: m and d of y_k's rows.
        seed: of the dropout.
        dropout: share of the updates' values that a step leaves out; of K adapters, one each.
        device: of its tensors.

    Attributes:
        center, scale: a row is ``(row - center) * scale`` to the classifier; both ``(m, d)``, for all adapters.
        share: a and b, ``(2,)`` or ``(K, 2)``.
        c: that the probe was fitted with, ``()``.
    """

    dropout: Tensor
    center: Tensor
    scale: Tensor
    share: Tensor
    c: Tensor
    steps: Tensor

    def __init__(
        self, rows: int, width: int, *, seed: int, dropout: float | Sequence[float], device: torch.device
    ) -> None:
        super().__init__()
        self.seed = seed
        drops = torch.tensor(dropout, device=device)[..., None, None, None]
        self.drops = bool(drops.any())
        self.register_buffer("dropout", drops, persistent=False)  # an option, which the config has
        self.register_buffer("center", torch.zeros(rows, width, device=device))
        self.register_buffer("scale", torch.ones(rows, width, device=device))
        self.register_buffer("share", torch.tensor(UNKNOWN, device=device).expand(*drops.shape[:-3], 2).clone())
        self.register_buffer("c", torch.ones((), device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def rows(self, start: Tensor, update: Tensor) -> Tensor:
        """Give what the classifier reads, ``(..., batch, m d)``: y_0's rows ``(batch, m, d)`` and their update.

        In training values of the update are dropped, from the same noise for all adapters.
        """
        if self.training and self.drops:
            kept = Noise(self.seed, self.steps, UPDATES).uniform(update.shape[-3:]) >= self.dropout
            update = update * kept / (1 - self.dropout)
        if self.training:
            self.steps.add_(1)
        return ((start + update - self.center) * self.scale).flatten(-2)

    def keep(self, trials: Sequence[int]) -> None:
        """Forget all adapters but these."""
        self.dropout, self.share = self.dropout[list(trials)], self.share[list(trials)]

    def blended(self, own: Tensor, probe: Tensor) -> Tensor:
        """Add logits: ``(batch, classes)`` of the probe, and ``(..., batch, classes)`` of the side networks."""
        a, b = self.share[..., None, None].unbind(-3)
        return a * probe + b * own
