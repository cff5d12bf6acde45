"""Kinds of probes on pooled rows that a task may learn beside its side network: their tuning, fit and weight."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.probe import blend, classes, ridge
from losa_cache.probe.folds import Folds, cross_validation
from losa_cache.probe.logistic import Fit
from losa_cache.sidenet.blend import Setting
from losa_cache.tasks.base import LOGISTIC, RIDGE


class Probe(ABC):
    """A linear map from pooled rows ``(N, F)`` to the outputs of a task; targets are ``Task.probe_targets``."""

    @abstractmethod
    def folds(self, y: Tensor, count: int, groups: NDArray[np.int64] | None = None) -> Folds:
        """Divide samples with these targets into so many folds, none of which shares a group with another."""

    @abstractmethod
    def choose(self, x: Tensor, y: Tensor, outputs: int, folds: Folds, device: torch.device) -> Setting:
        """Choose by the loss on what the folds hold out."""

    @abstractmethod
    def fit(self, setting: Setting, x: Tensor, y: Tensor, outputs: int, device: torch.device) -> Fit:
        """Fit all samples at a setting."""

    shares: Callable[[Tensor, Tensor, Tensor], Tensor]
    """The weights of the probe's and of a side network's outputs ``(N, outputs)`` that are best for targets."""


class Logistic(Probe):
    """A logistic and a ridge regression on class numbers, int64 ``(N,)``."""

    shares = staticmethod(blend.fit_shares)

    def folds(self, y: Tensor, count: int, groups: NDArray[np.int64] | None = None) -> Folds:
        """Spread the samples of each class evenly."""
        return cross_validation(y.numpy(), seed=0, folds=count, groups=groups)

    def choose(self, x: Tensor, y: Tensor, outputs: int, folds: Folds, device: torch.device) -> Setting:
        """Choose by the cross entropy."""
        return classes.choose(x, y, outputs, folds, device)

    def fit(self, setting: Setting, x: Tensor, y: Tensor, outputs: int, device: torch.device) -> Fit:
        """Fit to the optimum."""
        return classes.fit(setting, x, y, outputs, device)


class Ridge(Probe):
    """A ridge regression on standardised numbers, ``(N, outputs)``."""

    shares = staticmethod(ridge.fit_shares)

    def folds(self, y: Tensor, count: int, groups: NDArray[np.int64] | None = None) -> Folds:
        """Divide at random."""
        return cross_validation(np.zeros(len(y), np.int64), seed=0, folds=count, groups=groups)

    def choose(self, x: Tensor, y: Tensor, outputs: int, folds: Folds, device: torch.device) -> Setting:
        """Choose by the squared error."""
        return Setting(ridge.choose_ridge(x, y, folds, device))

    def fit(self, setting: Setting, x: Tensor, y: Tensor, outputs: int, device: torch.device) -> Fit:
        """Solve for it."""
        (found,) = ridge.fit_ridge(x.to(device), y.to(device), [setting.c])
        return found


PROBES: dict[str, Probe] = {LOGISTIC: Logistic(), RIDGE: Ridge()}
