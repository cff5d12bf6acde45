"""The classifier that a run fits to pooled rows: a logistic and a ridge regression, their logits added. *Not from the
paper*.

With few training images the sum is better than the logistic regression alone (``docs/benchmarks.md``), and it is one
linear map again. The ridge regression predicts 0 or 1 for every class. What it predicts is multiplied by one number, so
that it is read as logits (temperature scaling: Guo et al., ICML 2017).
"""

import torch
from torch import Tensor

from losa_cache.probe import blend
from losa_cache.probe.folds import Folds
from losa_cache.probe.logistic import PATH, Fit
from losa_cache.probe.record import LOGISTIC, RIDGE
from losa_cache.probe.tuning import REGRESSIONS, Standardised, parts_of, truth_of
from losa_cache.sidenet.blend import Setting

TRIED = PATH[::2]  # half a decade apart


def choose(x: Tensor, y: Tensor, classes: int, folds: Folds, device: torch.device) -> Setting:
    """Choose both strengths by the cross entropy of what the folds hold out, and then the shares of the two (arguments
    as of :func:`losa_cache.probe.tuning.tune`).
    """
    parts = parts_of(x, y, folds, device)
    (logistic, shared), (ridge, other) = (
        min(REGRESSIONS[name].follow(parts, classes, TRIED), key=lambda found: found[0].loss)
        for name in (LOGISTIC, RIDGE)
    )
    a, b = blend.fit_shares(shared, other, truth_of(parts), blend.OF_REGRESSIONS).tolist()
    return Setting(logistic.c, ridge.c, a, b * ridge.scale)


def fit(setting: Setting, x: Tensor, y: Tensor, classes: int, device: torch.device) -> Fit:
    """Fit all samples at a setting, to the optimum."""
    rows = Standardised(x, y, classes, device)
    found = rows.fit(LOGISTIC, setting.c, setting.logistic_share)
    if setting.ridge:
        other = rows.fit(RIDGE, setting.ridge, setting.ridge_share)
        found = Fit(found.weight + other.weight, found.bias + other.bias)
    return found
