"""Shares of probe and side network against SciPy's optimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from losa_cache.probe.blend import OF_REGRESSIONS, OF_SIDE_NETWORK, fit_shares


@pytest.mark.parametrize("prior", [OF_REGRESSIONS, OF_SIDE_NETWORK])
@pytest.mark.parametrize(
    ("images", "classes", "noise", "good", "bad"),
    [(0, 3, 1, 3, 2), (20, 5, 3, 3, 2), (200, 10, 10, 3, 2), (300, 2, 0.1, 3, -2), (300, 4, 2, -1, -1)],
)
def test_shares_minimise_the_loss_of_what_is_held_out(images, classes, noise, good, bad, prior):
    generator = torch.Generator().manual_seed(images)
    labels = torch.randint(0, classes, (images,), generator=generator)
    right = F.one_hot(labels, classes)
    noises = (noise * torch.randn(images, classes, generator=generator) for _ in range(2))
    probe, own = ((more + size * right).double() for more, size in zip(noises, (good, bad), strict=True))

    def objective(shares):
        a, b = map(float, shares)
        loss = F.cross_entropy(a * probe + b * own, labels, reduction="sum") if images else 0.0
        return float(loss) + prior.weight / 2 * ((a - prior.shares[0]) ** 2 + (b - prior.shares[1]) ** 2)

    expected = minimize(objective, prior.shares, bounds=[(0, None)] * 2, options={"ftol": 1e-13, "gtol": 1e-9}).x
    np.testing.assert_allclose(fit_shares(probe, own, labels, prior).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("size", [1e9, 1e20])
def test_a_side_network_that_diverged_has_no_share(size):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (40,), generator=generator)
    probe, own = 3.0 * F.one_hot(labels, 4), size * torch.randn(40, 4, generator=generator)
    a, b = fit_shares(probe.double(), own.double(), labels).tolist()
    assert 0.5 < a < 2 and b * size < 1
