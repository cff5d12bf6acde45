"""How tokens of a predicted layer are encoded and decoded, on tensors (``docs/protocol.md``, section "Prediction").

Products are computed in the dtype of ``Tables.turn``, and so is what follows from a decoded layer. Between the products
every step is one pass over memory or two. On CUDA, one Triton kernel does all steps between two products
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
        mean, spread: float32 ``(d,)``, from standardised values to values.
        offset, per_spread: float32 ``(d,)``, from values to standardised values.
        forecast: ``(d, d)``, predicts from the standardised values of the layer before; ``None`` for the first layer.
        turn: ``(m, d)``, from the residual to steps along the axes.
        rebuild: ``(m, d)``, from steps to standardised values.
        share: ``(m, 1)``, what a step along each axis adds to the root of a token's scale.
        half: float32 ``(m, 1)``, half of the steps of an axis.
        bit_planes: the place of every bit of the codes.
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
        before: the result of this function for the layer before, ``(batch * tokens, d)``; ``None`` for the first layer.
        tables: of the codec.
        codes: uint8 ``(batch, bytes, tokens)``, to be filled; a row of ``tokens`` bytes is contiguous, rows follow one
            another.
        scales: uint8 ``(batch, tokens)``, to be filled; a row is contiguous.
        extreme: a scalar that becomes NaN if a token is not finite.

    Returns:
        decoded standardised values, ``(batch * tokens, d)``.
    """
    predicted = predict(before, tables)
    rest = standardise(values, tables).flatten(0, 1)
    return store(rest if predicted is None else rest.sub_(predicted), predicted, tables, codes, scales, extreme)


def store(
    rest: Tensor, predicted: Tensor | None, tables: Tables, codes: Tensor, scales: Tensor, extreme: Tensor
) -> Tensor:
    """Store the residual, ``(batch * tokens, d)``; other arguments and result as in :func:`encode`."""
    along, scale = measure(rest, tables)
    found = quantise(along, scale, tables.half)
    codes.copy_(pack(found, tables.bit_planes).unflatten(1, scales.shape).transpose(0, 1))
    scales.copy_(scale.view(scales.shape))
    extreme.masked_fill_((scale == NOT_FINITE).any(), torch.nan)
    return restore(dequantise(found, scale, tables), predicted, tables)


def decode(codes: Tensor, scales: Tensor, before: Tensor | None, tables: Tables, into: Tensor | None) -> Tensor:
    """Decode what :func:`encode` filled: give the standardised values, and :func:`fill` a tensor with the values."""
    found = unpack(tokens_last(codes), tables.bit_planes)
    standard = restore(dequantise(found, scales.flatten(), tables), predict(before, tables), tables)
    if into is not None:
        fill(into, standard, scales, tables)
    return standard


def tokens_last(codes: Tensor) -> Tensor:
    """Give codes ``(batch, bytes, tokens)`` as ``(bytes, batch * tokens)``."""
    return codes.transpose(0, 1).flatten(1)


def fill(into: Tensor, standard: Tensor, scales: Tensor, tables: Tables) -> None:
    """Fill ``(batch, tokens, d)`` with values from standardised values; tokens that were not finite become NaN."""
    into.copy_(torch.addcmul(tables.mean, standard, tables.spread).view_as(into))
    unknown = scales == NOT_FINITE
    if into.is_cuda or bool(unknown.any()):  # a look at the values would wait for the device
        into.masked_fill_(unknown[..., None], torch.nan)


def standardise(values: Tensor, tables: Tables) -> Tensor:
    """Give standardised values, float32."""
    return torch.addcmul(tables.offset, values, tables.per_spread)


def predict(before: Tensor | None, tables: Tables) -> Tensor | None:
    """Predict standardised values; the first layer is not predicted."""
    return None if before is None or tables.forecast is None else before @ tables.forecast


def measure(rest: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """Measure the residual, ``(n, d)``, in steps along the axes, ``(m, n)``.

    A scale is the square of a mean of roots, so that large values along a few axes do not make the others coarse.

    Returns:
        the steps, and the tokens' scales, uint8.
    """
    if not len(tables.turn):  # a scale that only says whether the token is finite
        return rest.mT[:0], scale_code(rest.sum(1, dtype=torch.float32) * 0 + 1)
    along = tables.turn @ rest.to(tables.turn.dtype).mT
    return along, scale_code((along.abs().sqrt_() * tables.share).sum(0, dtype=torch.float32).square())


def quantise(along: Tensor, scale: Tensor, half: Tensor) -> Tensor:
    """Give the codes ``(m, n)``, uint8, of :func:`measure`'s results; the code of a NaN has no meaning."""
    steps = torch.addcmul(half + 0.5, along, 1 / scale_value(scale, 1))
    return torch.minimum(steps.clamp_min_(0), 2 * half).to(torch.uint8)


def dequantise(codes: Tensor, scale: Tensor, tables: Tables) -> Tensor:
    """Give the steps along the axes for codes, both ``(m, batch * tokens)``; 0 for a token that is not finite.

    A code stands for the middle of its step. With at most 8 bits, the middles are exact in bfloat16.
    """
    return (codes - tables.half).to(tables.turn.dtype).mul_(scale_value(scale, 0).to(tables.turn.dtype))


def restore(dequantised: Tensor, predicted: Tensor | None, tables: Tables) -> Tensor:
    """Add the decoded residual to the prediction, which is overwritten."""
    return dequantised.mT @ tables.rebuild if predicted is None else predicted.addmm_(dequantised.mT, tables.rebuild)


def scale_code(scale: Tensor) -> Tensor:
    """Give the byte of a token's scale: its logarithm, in steps of an eighth of an octave."""
    code = (scale.log2() * PER_OCTAVE + UNIT).round_().clamp(0, NOT_FINITE - 1)
    return torch.where(scale.isfinite(), code, NOT_FINITE).to(torch.uint8)


def scale_value(code: Tensor, unknown: float) -> Tensor:
    """Give the scale of a byte, float32; ``unknown`` for a token that is not finite."""
    return torch.where(code == NOT_FINITE, unknown, scale_values(code.device)[code.int()])


@cache
def scale_values(device: torch.device) -> Tensor:
    """Give the scales of all bytes, float32 ``(256,)``, 0 of :data:`NOT_FINITE`: the same on every device."""
    octaves = (torch.arange(NOT_FINITE + 1, dtype=torch.float64) - UNIT) / PER_OCTAVE
    with torch.inference_mode(False):
        return octaves.exp2().index_fill(0, torch.tensor([NOT_FINITE]), 0).float().to(device)
