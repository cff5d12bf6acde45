"""Integer codes by Triton: a token is read once, and its codes and scales are written; and the way back.

The oracle is :mod:`losa_cache.cache.precision.integers`, bit by bit, but for which of the NaNs a scale is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.cache.precision.kernels import EXACT

WARPS = 4


@triton.jit(do_not_specialize_on_alignment=["out"])
def _encode(
    values, inverse, out, extreme, enlarged,
    tokens, d, size, code_bytes, per_image, per_token, per_channel, out_image, out_token,
    bits: tl.constexpr, groups: tl.constexpr, pairs: tl.constexpr,
):  # fmt: skip
    """One token, as ``groups`` x ``pairs`` x 2 channels: codes, and one scale a group of ``size`` channels.

    ``enlarged`` is what the largest magnitude of a group is multiplied by to get its scale.
    """
    image, token = (tl.program_id(0) // tokens).to(tl.int64), tl.program_id(0) % tokens
    group = tl.arange(0, groups)
    pair = tl.arange(0, pairs)
    within = 2 * pair[None, :, None] + tl.arange(0, 2)[None, None, :]
    channel = group[:, None, None] * size + within
    inside = (channel < d) & (within < size)
    x = tl.load(values + image * per_image + token * per_token + channel * per_channel, mask=inside, other=0)
    x = x.to(tl.float32) * tl.load(inverse + channel, mask=inside, other=0)
    magnitude = tl.abs(x)
    finite = magnitude < float("inf")
    bad = tl.max(tl.max(tl.where(finite, 0, 1), axis=2), axis=1) > 0
    largest = tl.max(tl.max(tl.where(finite, magnitude, 0.0), axis=2), axis=1)
    scale = tl.where(bad, float("nan"), largest * enlarged).to(tl.bfloat16)
    step = tl.div_rn(1.0, scale.to(tl.float32))
    step = tl.where(step < float("inf"), step, 0.0)  # a group of zeros, or of NaN: codes 0
    nearest = (tl.where(bad[:, None, None], 0.0, x * step[:, None, None]) + 12582912.0) - 12582912.0  # 1.5 * 2^23
    codes = nearest.to(tl.int32)
    row = out + image * out_image + token * out_token
    if bits == 8:
        tl.store(row + channel, codes.to(tl.uint8), mask=inside)
    else:
        low, high = tl.split(codes)
        byte = (high << 4) | (low & 15)
        at = group[:, None] * size + 2 * pair[None, :]
        tl.store(row + at // 2, byte.to(tl.uint8), mask=(at < d) & (2 * pair < size)[None, :])
    pattern = scale.to(tl.int16, bitcast=True).to(tl.int32)
    there = group * size < d
    tl.store(row + code_bytes + 2 * group, pattern.to(tl.uint8), mask=there)
    tl.store(row + code_bytes + 2 * group + 1, (pattern >> 8).to(tl.uint8), mask=there)
    tl.store(extreme, float("nan"), mask=tl.max(tl.where(bad, 1, 0), axis=0) > 0)


@triton.jit(do_not_specialize_on_alignment=["stored"])
def _decode(
    stored, channels, out,
    tokens, d, size, code_bytes, per_image, per_token, out_image, out_token,
    bits: tl.constexpr, groups: tl.constexpr, pairs: tl.constexpr,
):  # fmt: skip
    """One token's values from its codes and scales, laid out as in ``_encode``."""
    image, token = (tl.program_id(0) // tokens).to(tl.int64), tl.program_id(0) % tokens
    group = tl.arange(0, groups)
    pair = tl.arange(0, pairs)
    within = 2 * pair[None, :, None] + tl.arange(0, 2)[None, None, :]
    channel = group[:, None, None] * size + within
    inside = (channel < d) & (within < size)
    row = stored + image * per_image + token * per_token
    there = group * size < d
    low = tl.load(row + code_bytes + 2 * group, mask=there, other=0).to(tl.int32)
    high = tl.load(row + code_bytes + 2 * group + 1, mask=there, other=0).to(tl.int32)
    scale = ((high << 24) | (low << 16)).to(tl.float32, bitcast=True)  # a bfloat16's bits are a float32's first half
    if bits == 8:
        codes = (tl.load(row + channel, mask=inside, other=0).to(tl.int32) << 24) >> 24
    else:
        at = group[:, None] * size + 2 * pair[None, :]
        byte = tl.load(row + at // 2, mask=(at < d) & (2 * pair < size)[None, :], other=0).to(tl.int32)
        codes = tl.join((byte << 28) >> 28, (byte << 24) >> 28)
    x = codes.to(tl.float32) * scale[:, None, None] * tl.load(channels + channel, mask=inside, other=0)
    tl.store(out + image * out_image + token * out_token + channel, x.to(tl.bfloat16), mask=inside)


def encode(values: Tensor, inverse: Tensor, out: Tensor, *, bits: int, groups: int, enlarged: float) -> Tensor:
    """Encode ``(batch, tokens, d)``.

    Args:
        values: of a layer.
        inverse: float32 ``(d,)``, what channels are multiplied by.
        out: uint8 ``(batch, tokens, columns)``, to be filled; a token's columns are contiguous.
        bits: of a code: 8, or 4.
        groups: scales of a token.
        enlarged: what the largest magnitude of a group is multiplied by to get its scale.

    Returns:
        0, or NaN if a group is not finite: a scalar on the device.
    """
    batch, tokens, d = values.shape
    extreme = torch.zeros((), device=values.device)
    with torch.cuda.device_of(values):
        _encode[(batch * tokens,)](
            values, inverse, out, extreme, enlarged, tokens, d, d // groups, d * bits // 8,
            *values.stride(), out.stride(0), out.stride(1), **_tile(bits, d, groups),
        )  # fmt: skip
    return extreme


def decode(stored: Tensor, channels: Tensor, out: Tensor, *, bits: int, groups: int) -> None:
    """Fill bfloat16 ``(batch, tokens, d)`` from ``(batch, tokens, columns)``; both have contiguous last dimensions."""
    batch, tokens, d = out.shape
    with torch.cuda.device_of(stored):
        _decode[(batch * tokens,)](
            stored, channels, out, tokens, d, d // groups, d * bits // 8,
            stored.stride(0), stored.stride(1), out.stride(0), out.stride(1), **_tile(bits, d, groups),
        )  # fmt: skip


def _tile(bits: int, d: int, groups: int) -> dict[str, int]:
    pairs = max(1, triton.next_power_of_2(d // groups) // 2)
    return {"bits": bits, "groups": triton.next_power_of_2(groups), "pairs": pairs, "num_warps": WARPS, **EXACT}
