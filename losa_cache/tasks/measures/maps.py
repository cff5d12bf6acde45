"""Outputs of patches against maps of pixels, a few maps at a time: at full size those of a batch may not fit a memory.

Outputs are enlarged bilinearly to the size of the map, as torch's ``interpolate`` does with ``align_corners=False``.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_VALUES, GPU_VALUES = 2**19, 2**27
"""Values of enlarged outputs at a time: on a CPU so many that they stay in its cache."""

Judge = Callable[[Tensor, Tensor], Tensor]
"""Enlarged outputs ``(B, C, H, W)`` and maps ``(B, H, W)`` to what is computed of each, ``(B, ...)``."""


def enlarged(outputs: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge ``(..., rows, columns)`` to ``(..., *size)``.

    As products with two small matrices it takes half the time of ``interpolate`` on a CPU, forth and back.
    """
    lengths = zip(outputs.shape[-2:], size, strict=True)
    down, across = (_weights(*own, outputs.dtype, outputs.device) for own in lengths)
    return (down @ outputs) @ across.mT


@lru_cache(maxsize=16)
def _weights(length: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give the matrix that enlarges a vector, ``(size, length)``."""
    with torch.inference_mode(False):
        unit = torch.eye(length, dtype=dtype)[None]
        return F.interpolate(unit, size=size, mode="linear", align_corners=False)[0].mT.contiguous().to(device)


def judged(outputs: Tensor, maps: Tensor, judge: Judge) -> Tensor:
    """Compute something of every map, without gradients.

    Args:
        outputs: of the patches of K trials, ``(K, B, C, rows, columns)``.
        maps: targets, ``(B, H, W)``.
        judge: computes it.

    Returns:
        ``(K, B, ...)``.
    """
    with torch.no_grad():
        found = [judge(_large(low, part), part) for low, part in _parts(outputs, maps)]
    return torch.cat(found).unflatten(0, outputs.shape[:2])


def losses(outputs: Tensor, maps: Tensor, judge: Judge) -> Tensor:
    """Compute a loss of every map, ``(K, B)``, with gradients; arguments as of :func:`judged`."""
    found: Tensor = _Losses.apply(outputs, maps, judge)
    return found


class _Losses(torch.autograd.Function):
    """Losses whose gradients are computed with them, map by map: nothing of the maps' size is kept until then."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, maps: Tensor, judge: Judge) -> Tensor:
        """Compute losses and, if they will be asked for, gradients."""
        if not ctx.needs_input_grad[0]:
            return judged(outputs, maps, judge)
        each: list[Tensor] = []
        gradients: list[Tensor] = []
        for low, part in _parts(outputs, maps):
            with torch.enable_grad():
                start = low.detach().requires_grad_()
                found = judge(_large(start, part), part)
                gradients += torch.autograd.grad(found.sum(), start)
            each.append(found.detach())
        ctx.save_for_backward(torch.cat(gradients).view_as(outputs))
        return torch.cat(each).unflatten(0, outputs.shape[:2])

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradients of each map."""
        (gradients,) = ctx.saved_tensors
        return gradients * above[..., None, None, None], None, None


def _large(low: Tensor, maps: Tensor) -> Tensor:
    rows, columns = maps.shape[1:]
    return enlarged(low, (rows, columns))


def _parts(outputs: Tensor, maps: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split trials and samples into parts, ``(B', C, rows, columns)`` and ``(B', H, W)``: those of a trial together."""
    limit = CPU_VALUES if outputs.device.type == "cpu" else GPU_VALUES
    size = max(1, limit // (outputs.shape[2] * maps[0].numel()))
    return [pair for trial in outputs for pair in zip(trial.split(size), maps.split(size), strict=True)]
