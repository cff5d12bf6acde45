"""The path of logistic regressions, held to scikit-learn's solution."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from losa_cache.probe.logistic import PATH, follow_path, rotated, standardise


def _data(samples, features, classes, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(samples) % classes)
    x = rng.normal(size=(samples, features)) + rng.normal(size=(classes, features))[y] * 0.3
    return x @ (np.eye(features) + 0.3 * rng.normal(size=(features, features))), y


@pytest.mark.parametrize(("samples", "features", "classes"), [(200, 12, 3), (60, 150, 5)])
def test_every_fit_of_the_path_is_that_of_scikit_learn(samples, features, classes):
    x, y = _data(samples, features, classes)
    scaler = StandardScaler().fit(x)
    z, _ = standardise(torch.tensor(x))
    np.testing.assert_allclose(z, scaler.transform(x), atol=1e-12)
    cs = [1e-4, 1e-2, 1.0]
    for c, (weight, bias) in zip(cs, follow_path(rotated(z), torch.tensor(y), classes, cs), strict=True):
        oracle = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(scaler.transform(x), y)
        np.testing.assert_allclose(weight, oracle.coef_, atol=1e-4 * np.abs(oracle.coef_).max())
        np.testing.assert_allclose(
            torch.softmax(z @ weight.T + bias, 1), oracle.predict_proba(scaler.transform(x)), atol=1e-5
        )


def test_two_classes_are_the_binary_model_at_twice_its_c():
    x, y = _data(80, 6, 2)
    z, _ = standardise(torch.tensor(x))
    (fit,) = follow_path(rotated(z), torch.tensor(y), 2, [0.05])
    oracle = LogisticRegression(C=0.1, tol=1e-10, max_iter=10000).fit(z.numpy(), y)  # |W|^2 = |w|^2 / 2
    np.testing.assert_allclose(torch.softmax(fit(z), 1), oracle.predict_proba(z.numpy()), atol=1e-6)


def test_constant_features_and_absent_classes():
    x, y = _data(60, 8, 3)
    x[:, 2] = 0.1  # not exact in binary: its spread is rounding
    z, standardisation = standardise(torch.tensor(x))
    assert standardisation.scale[2] == 1
    assert z[:, 2].abs().max() < 1e-12
    y = np.array([0, 2, 4])[y]
    for fit in follow_path(rotated(z), torch.tensor(y), 6, [1e-3, 10.0]):
        logits = fit(z)
        assert set(logits.argmax(1).tolist()) <= {0, 2, 4}
        alone = LogisticRegression(C=10.0, tol=1e-10, max_iter=10000).fit(z.numpy(), y)
    np.testing.assert_allclose(torch.softmax(logits[:, [0, 2, 4]], 1), alone.predict_proba(z.numpy()), atol=1e-5)


def test_standardisation_folds_into_the_fit():
    x, y = _data(60, 8, 3)
    z, standardisation = standardise(torch.tensor(x * 50 + 7))
    (fit,) = follow_path(rotated(z), torch.tensor(y), 3, [0.1])
    torch.testing.assert_close(standardisation.folded(fit)(torch.tensor(x * 50 + 7)), fit(z))


def test_the_path_has_at_least_thirty_values():
    assert len(set(PATH)) >= 30
