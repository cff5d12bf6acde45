"""Floating point by Triton: values are read once, rounded, and their largest magnitude is found on the way.

The oracle is :mod:`losa_cache.cache.precision.floats`, bit by bit, but for which of the NaNs a value is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE = 4096  # values of a program
WARPS = 8


@triton.jit
def _encode(values, out, largest, count, per_image, out_image, parts, size: tl.constexpr):
    """Round a part of an image's ``count`` values; their largest magnitude, or NaN if one of them is."""
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * size + tl.arange(0, size)
    inside = at < count
    x = tl.load(values + image * per_image + at, mask=inside, other=0)
    tl.store(out + image * out_image + at, x.to(out.dtype.element_ty), mask=inside)
    magnitude = tl.abs(x.to(tl.float32))
    known = magnitude >= 0
    found = tl.max(tl.where(known, magnitude, 0.0), axis=0)
    unknown = tl.max(tl.where(known, 0, 1), axis=0) > 0
    tl.store(largest + image * parts + part, tl.where(unknown, float("nan"), found))


def readable(values: Tensor, out: Tensor) -> bool:
    """Tell whether the values of an image lie one behind the other in both tensors, as the kernel needs it."""
    return values[0].is_contiguous() and out[0].is_contiguous()


def encode(values: Tensor, out: Tensor) -> Tensor:
    """Round ``(batch, tokens, d)`` into a tensor alike of any floating type, both :func:`readable`.

    Returns:
        the largest magnitude, float32, infinite or NaN if any value is: a scalar on the device.
    """
    batch, count = len(values), values[0].numel()
    parts = triton.cdiv(count, SIZE)
    largest = torch.empty(batch, parts, dtype=torch.float32, device=values.device)
    with torch.cuda.device_of(values):
        _encode[(batch, parts)](
            values, out, largest, count, values.stride(0), out.stride(0), parts, size=SIZE, num_warps=WARPS
        )
    return largest.amax()
