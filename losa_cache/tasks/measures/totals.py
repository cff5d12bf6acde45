"""Sums over samples, weighted."""

import torch
from torch import Tensor


def counted(weights: Tensor | None, like: Tensor) -> Tensor:
    """Give the weights, ``(B, N)`` in float64, or ones ``(1, N)`` for predictions ``(K, N, ...)``."""
    return like.new_ones((1, like.shape[1]), dtype=torch.float64) if weights is None else weights.double()


def totals(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum ``(K, N, S)`` over samples to ``(M, S)``."""
    return (counted(weights, values)[:, None, :] @ values.double())[:, 0]


def undefined(figures: Tensor, predictions: Tensor) -> Tensor:
    """Make the figures ``(M, ...)`` of trials with NaN among their predictions ``(K, ...)`` NaN."""
    broken = predictions.flatten(1).isnan().any(1)
    return figures.masked_fill(broken.reshape(-1, *[1] * (figures.ndim - 1)), torch.nan)
