"""Ridge regression over a path of strengths, in float64, and the shares of two predictions. *Not from the paper*.

The objective is that of ``logistic.py`` with squared errors: ``C / 2 * (sum of squared errors) + 1/2 |W|^2``, the bias
not penalised. So scikit-learn's ``alpha`` is 1 / C.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from losa_cache.probe.folds import Folds
from losa_cache.probe.logistic import PATH, Fit, Rotation, rotated, standardise
from losa_cache.sidenet.blend import UNKNOWN

WEIGHT = 10.0
"""Strength of the ridge that draws the shares to those without evidence."""


def fit_ridge(x: Tensor, y: Tensor, cs: Sequence[float]) -> list[Fit]:
    """Fit a linear map from features ``(N, F)`` to numbers ``(N, outputs)`` at every C.

    Features are standardised for the fit; the standardisation is folded in.
    """
    z, standardisation = standardise(x)
    rotation = rotated(z)
    return [standardisation.folded(rotation.undone(fit)) for fit in fit_rotated(rotation, y, cs)]


def fit_rotated(rotation: Rotation, y: Tensor, cs: Sequence[float]) -> Iterator[Fit]:
    """Do what :func:`fit_ridge` does, from and for standardised features that are rotated already, one by one."""
    mean = y.double().mean(0)
    products = rotation.z.T @ (y.double() - mean)
    for c in cs:
        yield Fit((products / (rotation.squares[:, None] + 1 / c)).T, mean)


def choose_ridge(x: Tensor, y: Tensor, folds: Folds, device: torch.device, cs: Sequence[float] = PATH) -> float:
    """Choose the C with the least squared error on what each fold holds out (arguments as of ``tuning.tune``)."""
    errors = torch.zeros(len(cs), dtype=torch.float64)
    for ours, theirs in folds.parts:
        held, truth = x[theirs].to(device).double(), y[theirs].to(device).double()
        fits = fit_ridge(x[ours].to(device), y[ours].to(device), cs)
        errors += torch.stack([(fit(held) - truth).square().sum() for fit in fits]).cpu()
    return cs[int(errors.argmin())]


def fit_shares(probe: Tensor, own: Tensor, numbers: Tensor) -> Tensor:
    """Fit a and b of ``a * probe + b * own``, both at least 0, by the squared errors of held-out images.

    A ridge around what is taken without evidence decides if there are few images.

    Args:
        probe, own: predictions ``(N, outputs)`` of standardised numbers; N may be 0.
        numbers: ``(N, outputs)``, standardised.

    Returns:
        a and b, float64 ``(2,)``.
    """
    columns = torch.stack([probe.double().flatten(), own.double().flatten()], 1)
    wanted, prior = numbers.double().flatten(), columns.new_tensor(UNKNOWN)
    bend = columns.T @ columns + WEIGHT * torch.eye(2, dtype=columns.dtype, device=columns.device)
    slope = columns.T @ wanted + WEIGHT * prior
    shares = torch.linalg.solve(bend, slope)
    for place in (0, 1):
        if shares[place] < 0:
            alone = torch.zeros_like(shares)
            alone[1 - place] = slope[1 - place] / bend[1 - place, 1 - place]
            return alone.clamp(min=0)
    return shares
