"""Parts of a classifier over all layers that only training needs, until they are folded into the weights. *Not from the
paper*.

The logits are ``a * probe + b * own``: the probe reads the pooled rows of all layers as the frozen trunk gives them,
the side network's own classifier reads what ``losa_cache.sidenet.reader`` makes of them and of y_k's. The two are
trained separately, so that each learns the whole task, and a and b weight their logits. Adding logits means averaging
log probabilities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losa_cache.sidenet.noise import Noise

UPDATES = 3  # stream of noise, beside those of losa_cache.sidenet.query
UNKNOWN = (0.75, 0.25)
"""The shares if nothing is held out to fit them on. A quarter for the side network is better than a half on the test
images of five data sets (``docs/benchmarks.md``)."""


class Setting(NamedTuple):
    """How a probe is regularised, and what it is the sum of.

    Attributes:
        c: regularisation C of a logistic regression, as scikit-learn's; of a probe of numbers that of its ridge
            regression.
        ridge: C of the ridge regression that is added to a logistic one; 0: there is none.
        logistic_share, ridge_share: factors of the logits of the two.
    """

    c: float
    ridge: float = 0.0
    logistic_share: float = 1.0
    ridge_share: float = 0.0


class Blend(nn.Module):
    """Dropout of the side network's update, and the weights of the logits, for one adapter or for K that share one
    probe.

    Args:
        seed: of the dropout.
        dropout: share of the update's values that a training step drops; for K adapters one each.
        device: of its tensors.

    Attributes:
        share: a and b, ``(2,)`` or ``(K, 2)``.
        setting: that of the probe, ``(4,)``: a :class:`Setting`.
        steps: number of training steps so far, int64 ``()``.
    """

    dropout: Tensor
    share: Tensor
    setting: Tensor
    steps: Tensor

    def __init__(self, *, seed: int, dropout: float | Sequence[float], device: torch.device) -> None:
        super().__init__()
        self.seed = seed
        rates = torch.tensor(dropout, device=device)[..., None, None, None]
        self.drops = bool(rates.any())
        self.register_buffer("dropout", rates, persistent=False)  # an option, which the config has
        self.register_buffer("share", torch.tensor(UNKNOWN, device=device).expand(*rates.shape[:-3], 2).clone())
        self.register_buffer("setting", torch.tensor(Setting(c=1.0), device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def dropped(self, update: Tensor) -> Tensor:
        """Leave values of ``(..., batch, m, d)`` out in a training step, from the same noise for all adapters."""
        if self.drops:
            kept = Noise(self.seed, self.steps, UPDATES).uniform(update.shape[-3:]) >= self.dropout
            update = update * kept / (1 - self.dropout)
        self.steps.add_(1)
        return update

    def chosen(self) -> Setting:
        """Give the setting of the probe."""
        return Setting(*self.setting.tolist())

    def keep(self, trials: Sequence[int]) -> None:
        """Drop all adapters but these."""
        self.dropout, self.share = self.dropout[list(trials)], self.share[list(trials)]

    def blended(self, own: Tensor, probe: Tensor) -> Tensor:
        """Add logits: ``(batch, classes)`` of the probe, and ``(..., batch, classes)`` of the side networks."""
        a, b = self.share[..., None, None].unbind(-3)
        return a * probe + b * own
