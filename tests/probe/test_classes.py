"""The sum of a logistic and a ridge regression: against a search by hand, and where one of the two is worse."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from losa_cache.probe.classes import TRIED, choose, fit
from losa_cache.probe.folds import cross_validation, held_out_fold
from losa_cache.probe.tuning import SCALES
from losa_cache.sidenet.blend import Setting

CPU = torch.device("cpu")


def drawn(samples, features=30, classes=3, seed=0):
    """Labels that a few of the features tell, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features)) * 3 + 5
    y = (x[:, :classes] + 4 * rng.normal(size=(samples, classes))).argmax(1)
    return torch.from_numpy(x), torch.from_numpy(y)


def logits(kind, x, y, held):
    scaler = StandardScaler().fit(x)
    if kind[0] == "logistic":
        return (
            LogisticRegression(C=kind[1], tol=1e-7, max_iter=1_000)
            .fit(scaler.transform(x), y)
            .decision_function(scaler.transform(held))
        )
    return Ridge(alpha=1 / kind[1]).fit(scaler.transform(x), np.eye(3)[y]).predict(scaler.transform(held))


@pytest.mark.parametrize("samples", [20, 60])  # fewer than features, and more
def test_a_fit_is_the_sum_of_scikit_learns_two(samples):
    x, y = drawn(samples)
    more = drawn(10, seed=1)[0].numpy()
    found = fit(Setting(0.01, 0.1, 0.7, 3.0), x.float(), y, 3, CPU)(torch.from_numpy(more)).softmax(1)
    parts = [logits(kind, x.numpy(), y.numpy(), more) for kind in (("logistic", 0.01), ("ridge", 0.1))]
    expected = torch.from_numpy(0.7 * parts[0] + 3.0 * parts[1]).softmax(1)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_an_earlier_versions_setting_is_a_logistic_regression_alone():
    x, y = drawn(40)
    found = fit(Setting(c=0.01), x, y, 3, CPU)(x).softmax(1)
    expected = torch.from_numpy(logits(("logistic", 0.01), x.numpy(), y.numpy(), x.numpy())).softmax(1)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_both_strengths_have_the_least_loss_on_what_is_held_out():
    x, y = drawn(45, features=8)
    folds = cross_validation(y.numpy(), seed=0, folds=3)
    setting = choose(x, y, 3, folds, CPU)
    truth = torch.cat([y[theirs] for _, theirs in folds.parts])

    def held(kind):
        parts = [logits(kind, x[ours].numpy(), y[ours].numpy(), x[theirs].numpy()) for ours, theirs in folds.parts]
        return torch.from_numpy(np.concatenate(parts))

    def loss(found):
        return float(F.cross_entropy(found, truth))

    by_c = {c: loss(held(("logistic", c))) for c in TRIED[4:12]}
    ridges = {c: held(("ridge", c)) for c in TRIED}
    by_strength = {c: min(loss(scale * found) for scale in SCALES) for c, found in ridges.items()}
    assert setting.c == min(by_c, key=by_c.get)
    assert setting.ridge == min(by_strength, key=by_strength.get)
    both = setting.logistic_share * held(("logistic", setting.c)) + setting.ridge_share * ridges[setting.ridge]
    assert loss(both) < min(*by_c.values(), *by_strength.values()) + 0.01


def test_a_class_that_has_no_sample_is_never_answered():
    x, y = drawn(40)
    y = y.clamp(max=1)
    setting = choose(x, y, 3, held_out_fold(25, 15), CPU)
    assert not (fit(setting, x, y, 3, CPU)(x).argmax(1) == 2).any()
