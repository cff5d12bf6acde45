"""Ridge regressions against scikit-learn, and shares against a brute search."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from losa_cache.probe.folds import held_out_fold
from losa_cache.probe.ridge import WEIGHT, choose_ridge, fit_ridge, fit_shares


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [12, 60])  # fewer than features, and more
def test_fits_are_those_of_scikit_learn(samples):
    x, noise = drawn(samples, 30) * 3 + 5, drawn(samples, 2, seed=1)
    y = x[:, :2] + noise
    scaled = StandardScaler().fit(x.numpy())
    for c, fit in zip((1e-3, 1.0), fit_ridge(x.float(), y.float(), [1e-3, 1.0]), strict=True):
        reference = Ridge(alpha=1 / c).fit(scaled.transform(x.numpy()), y.numpy())
        expected = reference.predict(scaled.transform(x.numpy() + 1))
        np.testing.assert_allclose(fit(x + 1).numpy(), expected, rtol=1e-4)


def test_c_has_the_least_error_on_what_is_held_out():
    x, cs = drawn(50, 20), [1e-4, 1e-2, 1.0, 1e2]
    y = x[:, :1] + 2 * drawn(50, 1, seed=2)
    errors = [float((fit(x[35:]) - y[35:]).square().sum()) for fit in fit_ridge(x[:35], y[:35], cs)]
    assert choose_ridge(x, y, held_out_fold(35, 15), torch.device("cpu"), cs) == cs[int(np.argmin(errors))]


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1)])
def test_shares_are_the_best_that_are_not_negative(signs):
    truth = drawn(40, 2)
    probe, own = (sign * (truth + 0.5 * drawn(40, 2, seed=at)) for at, sign in enumerate(signs, 3))

    def cost(a, b):
        wrong = np.multiply.outer(a, probe.numpy()) + np.multiply.outer(b, own.numpy()) - truth.numpy()
        return np.square(wrong).sum((-2, -1)) + WEIGHT * ((a - 0.75) ** 2 + (b - 0.25) ** 2)

    found = fit_shares(probe, own, truth).tolist()
    grid = np.linspace(0, 1.2, 121)
    assert min(found) >= 0
    assert cost(*found) <= cost(*np.meshgrid(grid, grid)).min() + 1e-9
