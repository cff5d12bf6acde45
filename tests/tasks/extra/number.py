"""A task in one file: a number an image, made of its class. Tests put it beside those of losa-cache."""

import math
from dataclasses import replace

import numpy as np

from losa_cache.errors import UserError
from losa_cache.tasks.base import Task
from losa_cache.tasks.measures.metric import Metric


def _off(numbers, targets):
    return (numbers[..., 0] - targets)[..., None]


def _explained(means):
    square, target, squares = means
    spread = squares - target**2
    return 1 - square / spread if spread > 0 else math.nan


def _moments(numbers, targets):
    from torch import cat

    square = _off(numbers, targets).square()
    target = targets[None, :, None].expand_as(square)
    return cat([square, target, target.square()], 2)


class Number(Task):
    name = "number"
    metrics = (
        Metric("loss", "loss", "", higher=False, digits=3, terms=lambda n, t: _off(n, t).square()),
        Metric("mae", "mean absolute error", "", higher=False, digits=2, terms=lambda n, t: _off(n, t).abs()),
        Metric("r2", "R²", "", higher=True, digits=3, terms=_moments, value=_explained),
    )
    selected_by = "mae"

    def outputs(self, names):
        return 1

    def targets(self, given):
        if max(map(len, given.names)) > 1:
            raise UserError(f"the classes are {', '.join(given.names)}: the task 'number' takes letters.")
        return replace(given, values=100 + 10 * given.values.astype(np.float32))

    def losses(self, outputs, targets):
        return _off(outputs, targets).square().squeeze(2)


TASK = Number()
