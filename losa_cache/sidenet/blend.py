"""What training adds to a classifier over all layers, until it is folded into the weights. *Not from the paper*.

The logits are ``a * probe + b * own``: the probe reads the pooled rows of all layers as the frozen trunk gives them,
the side network's own classifier reads what ``losa_cache.sidenet.reader`` makes of them and of y_k's. The two are
trained apart, so that each learns the whole task, and the shares a and b say how far each is to be trusted. Adding
logits is averaging log probabilities.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

UNKNOWN = (0.5, 0.5)  # shares where nothing is held out to fit them on


class Blend(nn.Module):
    """The shares of one adapter, or of K that have one probe.

    Args:
        trials: K; ``None``: one adapter.
        device: of its tensors.

    Attributes:
        share: a and b, ``(2,)`` or ``(K, 2)``.
        c: that the probe was fitted with, ``()``.
    """

    share: Tensor
    c: Tensor

    def __init__(self, trials: int | None = None, *, device: torch.device | None = None) -> None:
        super().__init__()
        lead = () if trials is None else (trials,)
        self.register_buffer("share", torch.tensor(UNKNOWN, device=device).expand(*lead, 2).clone())
        self.register_buffer("c", torch.ones((), device=device))

    def keep(self, trials: Sequence[int]) -> None:
        """Forget all adapters but these."""
        self.share = self.share[list(trials)]

    def blended(self, own: Tensor, probe: Tensor) -> Tensor:
        """Add logits: ``(batch, classes)`` of the probe, and ``(..., batch, classes)`` of the side networks."""
        a, b = self.share[..., None, None].unbind(-3)
        return a * probe + b * own
