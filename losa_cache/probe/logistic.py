"""Logistic regression over a path of strengths, to the optimum, in float64. *Not from the paper*.

The objective is scikit-learn's: ``C * (sum of cross entropies) + 1/2 |W|^2``, the bias not penalised.

Before the path, features are rotated to the axes of their own scatter, once: it changes no solution, for the penalty is
the same in every orthonormal basis. There the curvature of the objective is close to diagonal and scales the steps of
L-BFGS, and with fewer samples than features (``N < F``) only N axes are left, as the solution is a combination of rows.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PATH = tuple(10 ** (quarter / 4) for quarter in range(-24, 9))  # 33 values of C, 1e-6 ... 1e2
MOST_STEPS = 1000  # of L-BFGS at one C
KEPT_STEPS = 20
LITTLE = 1e8
"""Samples x axes x classes up to which a step is computed on the CPU: launching its many small operations on a GPU, and
waiting for their results, takes longer than computing them."""
TOLERANCE = 1e-7
"""Largest entry of the gradient at which a fit is done: of the mean loss, in the scaled variables."""
CHANGE = 1e-6  # times the tolerance: of the mean loss in one step; below 1e-13 rounding decides


class Standardisation(NamedTuple):
    """``z = (x - mean) / scale``, both float64 ``(F,)``."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise ``(N, F)`` of any floating dtype, to float64."""
        return (x.double() - self.mean) / self.scale

    def folded(self, fit: "Fit") -> "Fit":
        """Rewrite a fit on standardised features as one on the features themselves."""
        weight = fit.weight / self.scale
        return Fit(weight, fit.bias - weight @ self.mean)


class Fit(NamedTuple):
    """A linear classifier: ``weight`` float64 ``(classes, F)``, ``bias`` float64 ``(classes,)``."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits ``(N, classes)`` of features ``(N, F)``."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def standardise(x: Tensor) -> tuple[Tensor, Standardisation]:
    """Bring every feature of ``(N, F)`` to mean 0 and standard deviation 1 (over N, as scikit-learn's StandardScaler).

    A constant feature keeps its scale: it becomes 0.
    """
    wide = x.double()
    mean = wide.mean(0)
    spread = (wide - mean).square().mean(0).sqrt()
    rounding = torch.finfo(torch.float64).eps * len(x) * mean.abs()
    found = Standardisation(mean, torch.where(spread <= rounding, 1.0, spread))
    return found(wide), found


def follow_path(
    rotation: "Rotation", y: Tensor, classes: int, cs: Sequence[float], *, tolerance: float = TOLERANCE
) -> Iterator[Fit]:
    """Fit a multinomial logistic regression from strong to weak regularisation, each value of C from the last one.

    Args:
        rotation: of standardised features (:func:`rotated`), in float64; the fits are computed where they lie.
        y: int64 ``(N,)``, 0 ... classes - 1. A class without samples gets weight 0 and bias ``-log N``, below the mean
            of all others, so that it is never predicted.
        classes: how many.
        cs: values of C as scikit-learn's, above 0.
        tolerance: of the optimum.

    Yields:
        a fit for each C, in ascending order. The biases of classes with samples have mean 0.
    """
    present, places = y.to(rotation.z.device).unique(return_inverse=True)
    problem = _Problem(rotation, places, len(present))
    for c in sorted(set(cs)):
        yield _among(problem.fit(c, tolerance), present, classes, math.log(len(y)))


def _among(fit: Fit, present: Tensor, classes: int, below: float) -> Fit:
    weight = fit.weight.new_zeros(classes, fit.weight.shape[1])
    bias = fit.bias.new_full((classes,), -below)
    weight[present], bias[present] = fit.weight, fit.bias - fit.bias.mean()
    return Fit(weight, bias)


class _Problem:
    """Features on the axes of their scatter, and the solution at the last C, from which the next one starts."""

    def __init__(self, rotation: "Rotation", y: Tensor, classes: int) -> None:
        self._z, self._axes, squares = rotation
        self._device = self._z.device
        if self._z.numel() * classes < LITTLE:
            self._z, self._axes, squares, y = self._z.cpu(), self._axes.cpu(), squares.cpu(), y.cpu()
        self._y, self._classes = y, classes
        # the curvature of the loss at equal probabilities, on each axis: p (1 - p) times the mean square
        share = 1 / classes
        self._curvature = share * (1 - share) * squares / len(y)
        self._weight = self._z.new_zeros(classes, self._z.shape[1])
        self._bias = self._z.new_zeros(classes)

    def fit(self, c: float, tolerance: float) -> Fit:
        """Minimise the mean loss plus ``|W|^2 / (2 C N)``; both variables scaled by the roots of their curvature."""
        ridge = 1 / (c * len(self._z))
        scale = (self._curvature + ridge).sqrt()
        scale_bias = (1 / self._classes * (1 - 1 / self._classes)) ** 0.5 if self._classes > 1 else 1.0
        scaled = torch.cat([self._weight * scale, self._bias[:, None] * scale_bias], 1)
        scaled.requires_grad_()

        def objective() -> Tensor:
            with torch.no_grad():
                weight, bias = scaled[:, :-1] / scale, scaled[:, -1] / scale_bias
                logs = F.log_softmax(torch.addmm(bias, self._z, weight.T), 1)
                value = F.nll_loss(logs, self._y) + ridge / 2 * weight.square().sum()
                slope = logs.exp_()
                slope[torch.arange(len(slope), device=slope.device), self._y] -= 1
                slope /= len(slope)
                by_weight = (slope.T @ self._z + ridge * weight) / scale
                scaled.grad = torch.cat([by_weight, slope.sum(0)[:, None] / scale_bias], 1)
            return value

        torch.optim.LBFGS(
            [scaled],
            max_iter=MOST_STEPS,
            max_eval=2 * MOST_STEPS,
            tolerance_grad=tolerance,
            tolerance_change=CHANGE * tolerance,
            history_size=KEPT_STEPS,
            line_search_fn="strong_wolfe",
        ).step(objective)
        found = scaled.detach()
        self._weight, self._bias = found[:, :-1] / scale, found[:, -1] / scale_bias
        return Fit((self._weight @ self._axes).to(self._device), self._bias.to(self._device))


class Rotation(NamedTuple):
    """Features ``x = z @ axes``: the rows of ``axes`` ``(r, F)`` orthonormal, the columns of ``z`` ``(N, r)``
    orthogonal, ``squares`` ``(r,)`` their squared lengths.
    """

    z: Tensor
    axes: Tensor
    squares: Tensor

    def undone(self, fit: Fit) -> Fit:
        """Rewrite a fit on z as one on x."""
        return Fit(fit.weight @ self.axes, fit.bias)


def rotated(x: Tensor) -> Rotation:
    """Rotate features ``(N, F)`` to the axes of their scatter."""
    try:
        squares, vectors = torch.linalg.eigh(x.T @ x if len(x) >= x.shape[1] else x @ x.T)
    except RuntimeError:  # equal eigenvalues in number, as of equal rows: slower, and always ends
        ends, lengths, axes = torch.linalg.svd(x, full_matrices=False)
        return Rotation(ends * lengths, axes, lengths.square())
    if len(x) >= x.shape[1]:
        return Rotation(x @ vectors, vectors.T, squares.clamp(min=0))
    kept = squares > torch.finfo(x.dtype).eps * len(x) * squares[-1]
    squares, vectors = squares[kept], vectors[:, kept]
    lengths = squares.sqrt()
    return Rotation(vectors * lengths, (vectors / lengths).T @ x, squares)
