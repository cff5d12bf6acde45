"""How tokens of a predicted layer are encoded and decoded, on tensors (``docs/protocol.md``, section "Prediction").

Products are in ``Tables.turn``'s dtype, and so is what follows from a layer as decoded. Around the products every step
is a pass over memory or two: on CUDA, Triton makes one kernel of what lies between two products
(:mod:`losa_cache.cache.precision.kernels.chain`); :mod:`losa_cache.cache.precision.backend` chooses one of the two.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from losa_cache.cache.precision.bitplanes import BitPlanes, pack, unpack

NOT_FINITE = 255  # a token's scale, which decodes as NaN
UNIT, PER_OCTAVE = 128, 8  # scale 1, and scales from one to its double


class Tables(NamedTuple):
    """A layer's codec as products need it; m axes of d channels.

    Attributes:
        mean, spread: float32 ``(d,)``, of values; and
        offset, per_spread: of the way there.
        forecast: ``(d, d)``, from the standard values of the layer before; ``None`` for the first.
        turn: ``(m, d)``, from what prediction leaves to steps along the axes.
        rebuild: ``(m, d)``, from steps to standard values.
        share: ``(m, 1)``, what a step along each axis adds to the root of a token's scale.
        half: float32 ``(m, 1)``, half of the steps of an axis.
        bit_planes: where its codes' bits stand.
    """

    mean: Tensor
    spread: Tensor
    offset: Tensor
    per_spread: Tensor
    forecast: Tensor | None
    turn: Tensor
    rebuild: Tensor
    share: Tensor
    half: Tensor
    bit_planes: BitPlanes


def encode(
    values: Tensor, before: Tensor | None, tables: Tables, codes: Tensor, scales: Tensor, extreme: Tensor
) -> Tensor:
    """Encode tokens ``(batch, tokens, d)``.

    Args:
        values: of a layer.
        before: what this gave last for the layer before it, ``(batch * tokens, d)``; ``None`` for the first layer.
        tables: of the codec.
        codes: uint8 ``(batch, bytes, tokens)``, to be filled; a row of ``tokens`` bytes is contiguous, rows follow one
            another.
        scales: uint8 ``(batch, tokens)``, to be filled; a row is contiguous.
        extreme: a scalar that becomes NaN if a token is not finite.

    Returns:
        standard values as decoded, ``(batch * tokens, d)``.
    """
    predicted = predict(before, tables)
    rest = standardise(values, tables).flatten(0, 1)
    return store(rest if predicted is None else rest.sub_(predicted), predicted, tables, codes, scales, extreme)


def store(
    rest: Tensor, predicted: Tensor | None, tables: Tables, codes: Tensor, scales: Tensor, extreme: Tensor
) -> Tensor:
    """Store what prediction left, ``(batch * tokens, d)``; other arguments and result as of :func:`encode`."""
    along, scale = measure(rest, tables)
    found = quantise(along, scale, tables.half)
    codes.copy_(pack(found, tables.bit_planes).unflatten(1, scales.shape).transpose(0, 1))
    scales.copy_(scale.view(scales.shape))
    extreme.masked_fill_((scale == NOT_FINITE).any(), torch.nan)
    return restore(dequantise(found, scale, tables), predicted, tables)


def decode(codes: Tensor, scales: Tensor, before: Tensor | None, tables: Tables, into: Tensor | None) -> Tensor:
    """Give the standard values of what :func:`encode` filled, and :func:`fill` a tensor with their values."""
    found = unpack(tokens_last(codes), tables.bit_planes)
    standard = restore(dequantise(found, scales.flatten(), tables), predict(before, tables), tables)
    if into is not None:
        fill(into, standard, scales, tables)
    return standard


def tokens_last(codes: Tensor) -> Tensor:
    """Give codes ``(batch, bytes, tokens)`` as ``(bytes, batch * tokens)``."""
    return codes.transpose(0, 1).flatten(1)


def fill(into: Tensor, standard: Tensor, scales: Tensor, tables: Tables) -> None:
    """Fill ``(batch, tokens, d)`` with the values of standard values: NaN where the backbone gave such."""
    into.copy_(torch.addcmul(tables.mean, standard, tables.spread).view_as(into))
    unknown = scales == NOT_FINITE
    if into.is_cuda or bool(unknown.any()):  # a look at the values would wait for the device
        into.masked_fill_(unknown[..., None], torch.nan)


def standardise(values: Tensor, tables: Tables) -> Tensor:
    """Give standard values, float32."""
    return torch.addcmul(tables.offset, values, tables.per_spread)


def predict(before: Tensor | None, tables: Tables) -> Tensor | None:
    """Predict standard values; there are none to predict a first layer from."""
    return None if before is None or tables.forecast is None else before @ tables.forecast


def measure(rest: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """Measure what prediction left, ``(n, d)``, in steps along the axes, ``(m, n)``.

    A scale is the square of a mean of roots: what is far out along a few axes does not make the others coarse.

    Returns:
        them, and the tokens' scales, uint8.
    """
    if not len(tables.turn):  # a scale that only says whether the token is finite
        return rest.mT[:0], scale_code(rest.sum(1, dtype=torch.float32) * 0 + 1)
    along = tables.turn @ rest.to(tables.turn.dtype).mT
    return along, scale_code((along.abs().sqrt_() * tables.share).sum(0, dtype=torch.float32).square())


def quantise(along: Tensor, scale: Tensor, half: Tensor) -> Tensor:
    """Give the codes ``(m, n)``, uint8, of :func:`measure`'s results; of a NaN any."""
    steps = torch.addcmul(half + 0.5, along, 1 / scale_value(scale, 1))
    return torch.minimum(steps.clamp_min_(0), 2 * half).to(torch.uint8)


def dequantise(codes: Tensor, scale: Tensor, tables: Tables) -> Tensor:
    """Give the steps along the axes that codes stand for, both ``(m, batch * tokens)``: none of a token that is not
    finite. Codes stand for the middles of their steps; of at most 8 bits, these are exact in bfloat16.
    """
    return (codes - tables.half).to(tables.turn.dtype).mul_(scale_value(scale, 0).to(tables.turn.dtype))


def restore(dequantised: Tensor, predicted: Tensor | None, tables: Tables) -> Tensor:
    """Add what prediction left, as decoded, to what was predicted, which is overwritten."""
    return dequantised.mT @ tables.rebuild if predicted is None else predicted.addmm_(dequantised.mT, tables.rebuild)


def scale_code(scale: Tensor) -> Tensor:
    """Give the byte of a token's scale: its logarithm, an eighth of an octave a step."""
    code = (scale.log2() * PER_OCTAVE + UNIT).round_().clamp(0, NOT_FINITE - 1)
    return torch.where(scale.isfinite(), code, NOT_FINITE).to(torch.uint8)


def scale_value(code: Tensor, unknown: float) -> Tensor:
    """Give the scale of a byte, float32; ``unknown`` of a token that is not finite."""
    return torch.where(code == NOT_FINITE, unknown, scale_values(code.device)[code.int()])


@cache
def scale_values(device: torch.device) -> Tensor:
    """Give the scales of all bytes, float32 ``(256,)``, 0 of :data:`NOT_FINITE`: the same on every device."""
    octaves = (torch.arange(NOT_FINITE + 1, dtype=torch.float64) - UNIT) / PER_OCTAVE
    with torch.inference_mode(False):
        return octaves.exp2().index_fill(0, torch.tensor([NOT_FINITE]), 0).float().to(device)
