"""The weights of two classifiers' logits: two numbers, fitted on held-out images."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.sidenet.blend import UNKNOWN


class Prior(NamedTuple):
    """What is believed before any image is held out.

    Attributes:
        shares: a and b.
        weight: strength of the ridge that draws to them.
    """

    shares: tuple[float, float]
    weight: float


OF_REGRESSIONS = Prior((0.5, 0.5), 10.0)
"""The prior of a logistic and a ridge regression: neither is preferred."""
OF_SIDE_NETWORK = Prior(UNKNOWN, 30.0)
"""The prior of a probe and a side network. The probe is preferred, because a side network overfits if there are few
images, and a few held-out images do not show it: they are often closer to the training images than test images are."""
STEPS, ENOUGH = 50, 1e-10


def fit_shares(probe: Tensor, own: Tensor, labels: Tensor, prior: Prior = OF_SIDE_NETWORK) -> Tensor:
    """Fit a and b of ``a * probe + b * own``, both at least 0, by the cross entropy of held-out images.

    This is a logistic regression in two variables, by Newton's method in float64. A ridge around the prior decides if
    there are few images.

    Args:
        probe, own: logits ``(N, classes)``; N may be 0.
        labels: int64 ``(N,)``.
        prior: what is taken without images.

    Returns:
        a and b, float64 ``(2,)``.
    """
    logits = torch.stack([probe, own]).double()
    free = [True, True]
    shares = _newton(logits, labels, free, prior)
    for place in (0, 1):
        if shares[place] < 0:
            free = [at != place for at in (0, 1)]
            return _newton(logits, labels, free, prior).clamp(min=0)
    return shares


def _newton(logits: Tensor, labels: Tensor, free: list[bool], prior: Prior) -> Tensor:
    """Fit the free weights; the others are 0. Steps are halved until the loss falls."""
    open_ = torch.tensor(free, dtype=logits.dtype, device=logits.device)
    start, weight = open_.new_tensor(prior.shares), prior.weight
    right = F.one_hot(labels, logits.shape[2]).to(logits)

    def objective(shares: Tensor) -> Tensor:
        loss = F.cross_entropy(torch.einsum("s,snc->nc", shares, logits), labels, reduction="sum")
        return loss + weight / 2 * ((shares - start) ** 2).sum()

    # logits far beyond sense, of a side network that diverged, would leave no way down from the prior
    shares = min((start * open_, *torch.diag(open_), torch.zeros_like(open_)), key=objective)
    value = objective(shares)
    for _ in range(STEPS):
        chance = torch.einsum("s,snc->nc", shares, logits).softmax(1)
        means = torch.einsum("nc,snc->ns", chance, logits)
        slope = torch.einsum("nc,snc->s", chance - right, logits) + weight * (shares - start)
        bend = torch.einsum("nc,snc,tnc->st", chance, logits, logits) - means.T @ means
        bend = bend + weight * torch.eye(2, dtype=bend.dtype, device=bend.device)
        change = torch.linalg.solve(bend * open_ * open_[:, None] + torch.diag(1 - open_), slope * open_)
        while (found := objective(shares - change)) > value:
            change = change / 2
            if float(change.norm()) < ENOUGH:
                return shares
        shares, value = shares - change, found
        if float(change.norm()) < ENOUGH:
            break
    return shares
