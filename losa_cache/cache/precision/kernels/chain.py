"""The layers of a chain by Triton: what lies between their products, each in one pass over memory.

The oracle is :mod:`losa_cache.cache.precision.token_codec`, whose three functions these are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.cache.precision import token_codec
from losa_cache.cache.precision.kernels import EXACT
from losa_cache.cache.precision.token_codec import Tables, scale_values

ROWS, CHANNELS = 8, 256  # of a tile of values
AXES, BYTES, TOKENS = 128, 32, 32  # of a tile of steps, and of their codes: few turns with much in flight


@triton.jit
def _leave(
    values, predicted, offset, per_spread, rest,
    n, tokens, d, per_image, per_token, per_channel,
    chained: tl.constexpr, rows: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Rest (n, d) = offset + values (batch, tokens, d) * per_spread - predicted (n, d)."""
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.program_id(1) * channels + tl.arange(0, channels)
    inside = (token < n)[:, None] & (channel < d)[None, :]
    image = (token // tokens).to(tl.int64)
    at = (image * per_image + (token % tokens) * per_token)[:, None] + channel[None, :] * per_channel
    x = tl.load(values + at, mask=inside, other=0).to(tl.float32)
    x = tl.load(per_spread + channel, mask=channel < d, other=0)[None, :] * x
    x = tl.load(offset + channel, mask=channel < d, other=0)[None, :] + x
    place = token.to(tl.int64)[:, None] * d + channel[None, :]
    if chained:
        x -= tl.load(predicted + place, mask=inside, other=0).to(tl.float32)
    tl.store(rest + place, x.to(rest.dtype.element_ty), mask=inside)


@triton.jit
def _code(along, half, inverse, finite):
    """Codes of steps along the axes, int32; 0 of a token that is not finite."""
    steps = tl.minimum(tl.maximum((half + 0.5) + along * inverse, 0.0), 2 * half)
    return tl.where(finite, steps, 0.0).to(tl.int32)


@triton.jit(do_not_specialize=["m", "height", "per_image", "per_scale"],
            do_not_specialize_on_alignment=["codes", "scales"])  # fmt: skip
def _store(
    along, share, half, axis, plane, values_of, codes, scales, dequantised, extreme,
    n, m, height, tokens, per_image, per_scale,
    axes: tl.constexpr, bytes_: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """From ``along`` (m, n): scales (n,), packed codes (height, n), and the steps that they stand for (m, n).

    A program reads its columns of ``along`` three times: once from memory, then from a cache.
    """
    dtype = along.dtype.element_ty
    token = tl.program_id(0) * columns + tl.arange(0, columns)
    there = token < n
    total = tl.zeros((axes, columns), dtype=tl.float32)
    for first in range(0, m, axes):
        row = first + tl.arange(0, axes)
        at = row.to(tl.int64)[:, None] * n + token[None, :]
        x = tl.load(along + at, mask=(row < m)[:, None] & there[None, :], other=0).to(tl.float32)
        root = tl.sqrt_rn(tl.abs(x)).to(dtype).to(tl.float32)
        part = root * tl.load(share + row, mask=row < m, other=0).to(tl.float32)[:, None]
        total += part.to(dtype).to(tl.float32)
    mean = tl.sum(total, axis=0)
    size = mean * mean
    finite = size < float("inf")
    octave = tl.log2(tl.maximum(size, 1e-30)) * 8 + 128  # what is smaller has the least scale, too
    nearest = (tl.minimum(tl.maximum(octave, 0.0), 254.0) + 12582912.0) - 12582912.0  # 1.5 * 2^23: no fractions above
    scale = tl.where(finite, nearest, 255.0).to(tl.int32)
    image, position = (token // tokens).to(tl.int64), token % tokens
    tl.store(scales + image * per_scale + position, scale.to(tl.uint8), mask=there)
    unknown = tl.max(tl.where(finite, 0, 1), axis=0) > 0
    tl.store(extreme, float("nan"), mask=unknown)
    value = tl.load(values_of + scale)
    inverse = tl.div_rn(1.0, tl.where(finite, value, 1.0))[None, :]
    finite = finite[None, :]
    for first in range(0, height, bytes_):
        row = first + tl.arange(0, bytes_)
        inside = row < height
        byte = tl.zeros((bytes_, columns), dtype=tl.int32)
        for bit in tl.static_range(8):
            own = tl.load(axis + bit * height + row, mask=inside, other=0)
            shift = tl.load(plane + bit * height + row, mask=inside, other=0).to(tl.int32)
            x = tl.load(along + own[:, None] * n + token[None, :], mask=inside[:, None] & there[None, :], other=0)
            code = _code(x.to(tl.float32), tl.load(half + own, mask=inside, other=0)[:, None], inverse, finite)
            byte |= ((code >> shift[:, None]) & 1) << bit
        to = codes + (image * per_image + position)[None, :] + row[:, None] * tokens
        tl.store(to, byte.to(tl.uint8), mask=inside[:, None] & there[None, :])
    rounded = value.to(dtype).to(tl.float32)[None, :]
    for first in range(0, m, axes):
        row = first + tl.arange(0, axes)
        at = row.to(tl.int64)[:, None] * n + token[None, :]
        inside = (row < m)[:, None] & there[None, :]
        middle = tl.load(half + row, mask=row < m, other=0)[:, None]
        x = tl.load(along + at, mask=inside, other=0).to(tl.float32)
        step = _code(x, middle, inverse, finite).to(tl.float32) - middle
        tl.store(dequantised + at, (step * rounded).to(dtype), mask=inside)


@triton.jit(do_not_specialize=["m", "height", "planes", "per_image", "per_scale"],
            do_not_specialize_on_alignment=["codes", "scales"])  # fmt: skip
def _dequantise(
    codes, scales, half, byte, bit, has, values_of, dequantised,
    n, m, planes, tokens, per_image, per_scale,
    axes: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Give the steps (m, n) that packed codes (batch, bytes, tokens) stand for; the first axes have the most planes."""
    dtype = dequantised.dtype.element_ty
    token = tl.program_id(0) * columns + tl.arange(0, columns)
    row = tl.program_id(1) * axes + tl.arange(0, axes)
    there, inside = token < n, row < m
    image, position = (token // tokens).to(tl.int64), token % tokens
    column = codes + (image * per_image + position)[None, :]
    code = tl.zeros((axes, columns), dtype=tl.int32)
    for plane in range(0, planes):
        own = tl.load(has + plane * m + row, mask=inside, other=0) > 0
        at = tl.load(byte + plane * m + row, mask=own, other=0)
        shift = tl.load(bit + plane * m + row, mask=own, other=0).to(tl.int32)
        packed = tl.load(column + at[:, None] * tokens, mask=own[:, None] & there[None, :], other=0).to(tl.int32)
        code |= ((packed >> shift[:, None]) & 1) << plane
    scale = tl.load(scales + image * per_scale + position, mask=there, other=0).to(tl.int32)
    size = tl.load(values_of + scale).to(dtype).to(tl.float32)
    step = code.to(tl.float32) - tl.load(half + row, mask=inside, other=0)[:, None]
    to = dequantised + row.to(tl.int64)[:, None] * n + token[None, :]
    tl.store(to, (step * size[None, :]).to(dtype), mask=inside[:, None] & there[None, :])


@triton.jit(do_not_specialize=["per_scale"], do_not_specialize_on_alignment=["scales"])
def _fill(
    into, standard, scales, mean, spread,
    n, tokens, d, per_image, per_token, per_channel, per_scale,
    rows: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Into (batch, tokens, d) = mean + standard (n, d) * spread, NaN where the scale says so."""
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.program_id(1) * channels + tl.arange(0, channels)
    inside = (token < n)[:, None] & (channel < d)[None, :]
    image, position = (token // tokens).to(tl.int64), token % tokens
    x = tl.load(standard + token.to(tl.int64)[:, None] * d + channel[None, :], mask=inside, other=0).to(tl.float32)
    x *= tl.load(spread + channel, mask=channel < d, other=0)[None, :]
    x += tl.load(mean + channel, mask=channel < d, other=0)[None, :]
    scale = tl.load(scales + image * per_scale + position, mask=token < n, other=0)
    x = tl.where((scale == 255)[:, None], float("nan"), x)
    at = (image * per_image + position * per_token)[:, None] + channel[None, :] * per_channel
    tl.store(into + at, x.to(into.dtype.element_ty), mask=inside)


def encode(
    values: Tensor, before: Tensor | None, tables: Tables, codes: Tensor, scales: Tensor, extreme: Tensor
) -> Tensor:
    """Encode as :func:`losa_cache.cache.precision.token_codec.encode` does."""
    predicted = token_codec.predict(before, tables)
    with torch.cuda.device_of(values):
        rest = _rest(values, predicted, tables)
        if not len(tables.turn):
            return token_codec.store(rest, predicted, tables, codes, scales, extreme)
        along = tables.turn @ rest.mT
        dequantised = torch.empty_like(along)
        (m, n), planes = along.shape, tables.bit_planes
        _store[(triton.cdiv(n, TOKENS),)](
            along, tables.share, tables.half, planes.axis, planes.plane, scale_values(along.device), codes, scales,
            dequantised, extreme, n, m, codes.shape[1], scales.shape[1], codes.stride(0), scales.stride(0),
            axes=AXES, bytes_=BYTES, columns=TOKENS, **EXACT,
        )  # fmt: skip
    return token_codec.restore(dequantised, predicted, tables)


def decode(codes: Tensor, scales: Tensor, before: Tensor | None, tables: Tables, into: Tensor | None) -> Tensor:
    """Decode as :func:`losa_cache.cache.precision.token_codec.decode` does."""
    predicted = token_codec.predict(before, tables)
    m, n, planes = len(tables.turn), scales.numel(), tables.bit_planes
    dequantised = torch.empty(m, n, dtype=tables.turn.dtype, device=codes.device)
    with torch.cuda.device_of(codes):
        if m:
            _dequantise[(triton.cdiv(n, TOKENS), triton.cdiv(m, AXES))](
                codes, scales, tables.half, planes.byte, planes.bit, planes.there, scale_values(codes.device),
                dequantised, n, m, len(planes.byte), scales.shape[1], codes.stride(0), scales.stride(0),
                axes=AXES, columns=TOKENS, **EXACT,
            )  # fmt: skip
    standard = token_codec.restore(dequantised, predicted, tables)
    if into is not None:
        fill(into, standard, scales, tables)
    return standard


def fill(into: Tensor, standard: Tensor, scales: Tensor, tables: Tables) -> None:
    """Fill as :func:`losa_cache.cache.precision.token_codec.fill` does."""
    n, d = standard.shape
    with torch.cuda.device_of(into):
        _fill[(triton.cdiv(n, ROWS), triton.cdiv(d, CHANNELS))](
            into, standard, scales, tables.mean, tables.spread,
            n, into.shape[1], d, *into.stride(), scales.stride(0), rows=ROWS, channels=CHANNELS, **EXACT,
        )  # fmt: skip


def _rest(values: Tensor, predicted: Tensor | None, tables: Tables) -> Tensor:
    """Give what prediction leaves of ``(batch, tokens, d)``, ``(batch * tokens, d)``, as products take it."""
    batch, tokens, d = values.shape
    rest = torch.empty(batch * tokens, d, dtype=tables.turn.dtype, device=values.device)
    _leave[(triton.cdiv(len(rest), ROWS), triton.cdiv(d, CHANNELS))](
        values, rest if predicted is None else predicted, tables.offset, tables.per_spread, rest,
        len(rest), tokens, d, *values.stride(),
        chained=predicted is not None, rows=ROWS, channels=CHANNELS, **EXACT,
    )  # fmt: skip
    return rest
