"""The classifier that a run fits to pooled rows: a logistic and a ridge regression, their logits added. *Not from the
paper*.

With few training images the sum is better than the logistic regression alone (``docs/benchmarks.md``), and it is one
linear map again. The ridge regression predicts 0 or 1 for every class. What it predicts is multiplied by one number, so
that it is read as logits (temperature scaling: Guo et al., ICML 2017).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.probe.blend import fit_shares
from losa_cache.probe.logistic import PATH, Fit, follow_path, rotated, standardise
from losa_cache.probe.ridge import fit_rotated
from losa_cache.probe.tuning import Folds, Part, follow, parts_of
from losa_cache.sidenet.blend import Setting

TRIED = PATH[::2]  # half a decade apart
SCALES = tuple(10 ** (tenth / 10) for tenth in range(-10, 26))  # 0.1 ... 316: what turns predictions into logits


def choose(x: Tensor, y: Tensor, classes: int, folds: Folds, device: torch.device) -> Setting:
    """Choose both strengths by the cross entropy of what the folds hold out, and then the shares of the two (arguments
    as of :func:`losa_cache.probe.tuning.tune`).
    """
    parts = parts_of(x, y, folds, device)
    truth = torch.cat([part.truth for part in parts])
    (c, _, _), shared = min(follow(parts, classes, TRIED), key=lambda tried: tried[0][2])
    each = torch.cat([_predicted(part, classes) for part in parts], 1)
    _, strength, scale = min(
        (float(F.cross_entropy(scale * found, truth)), at, scale) for at, found in enumerate(each) for scale in SCALES
    )
    a, b = fit_shares(shared, scale * each[strength], truth).tolist()
    return Setting(c, TRIED[strength], a, b * scale)


def fit(setting: Setting, x: Tensor, y: Tensor, classes: int, device: torch.device) -> Fit:
    """Fit all samples at a setting, to the optimum."""
    z, standardisation = standardise(x.to(device))
    rotation, y = rotated(z), y.to(device)
    ((weight, bias),) = follow_path(rotation, y, classes, [setting.c])
    if setting.ridge:
        other = rotation.undone(*fit_rotated(rotation, _columns(y, classes), [setting.ridge]))
        weight = setting.logistic_share * weight + setting.ridge_share * other.weight
        bias = setting.logistic_share * bias + setting.ridge_share * other.bias
    return standardisation.folded(Fit(weight, bias))


def _predicted(part: Part, classes: int) -> Tensor:
    """What ridge regressions of every strength predict of what a fold holds out, ``(strengths, N, classes)``."""
    held = part.held @ part.rotation.axes.T
    return torch.stack([ridge(held) for ridge in fit_rotated(part.rotation, _columns(part.fitted, classes), TRIED)])


def _columns(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).double()
