"""What a link does to tokens, on tensors alone (``docs/protocol.md``, section "Prediction").

Products are in ``Tables.turn``'s dtype, and so is what follows from a layer as decoded. Around the products every step
is a pass over memory or two: on CUDA, :func:`fused` makes one kernel of all that lies between two products.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from losa_cache.cache.precision.bitplanes import Planes, pack, unpack
from losa_cache.fastest import why_not_triton

NOT_FINITE = 255  # a token's scale, which decodes as NaN
UNIT, PER_OCTAVE = 128, 8  # scale 1, and scales from one to its double

Step = TypeVar("Step", bound=Callable[..., object])


class Tables(NamedTuple):
    """A link as products need it; m axes of d channels.

    Attributes:
        mean, spread: float32 ``(d,)``, of values; and
        offset, per_spread: of the way there.
        forecast: ``(d, d)``, from the standard values of the layer before; ``None`` for the first.
        turn: ``(m, d)``, from what prediction leaves to steps along the axes.
        rebuild: ``(m, d)``, from steps to standard values.
        share: ``(m, 1)``, what a step along each axis adds to the root of a token's scale.
        half: float32 ``(m, 1)``, half of the steps of an axis.
        planes: where its codes' bits stand.
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
    planes: Planes


def encode(values: Tensor, before: Tensor | None, tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
    """Encode tokens ``(batch, tokens, d)``.

    Args:
        values: of a layer.
        before: what this gave last for the layer before it, ``(batch * tokens, d)``; ``None`` for the first layer.
        tables: of the link.

    Returns:
        bytes of codes ``(bytes, batch * tokens)``, scales uint8 ``(batch * tokens,)``, and standard values as decoded.
    """
    predicted = predict(before, tables)
    rest = standardise(values, tables).flatten(0, 1)
    along, scale = measure(rest if predicted is None else rest.sub_(predicted), tables)
    codes = quantise(along, scale, tables.half)
    return pack(codes, tables.planes), scale, restore(scale, codes, predicted, tables)


def decode(packed: Tensor, scale: Tensor, before: Tensor | None, tables: Tables, into: Tensor | None) -> Tensor:
    """Give the standard values of :func:`encode`'s results, and :func:`fill` a tensor with their values."""
    standard = restore(scale, unpack(packed, tables.planes), predict(before, tables), tables)
    if into is not None:
        fill(into, standard, scale, tables)
    return standard


def walk(packed: Tensor, scale: Tensor, tables: Tables) -> Tensor:
    """Give the steps along the axes of :func:`encode`'s results, ``(m, batch * tokens)``."""
    return _steps(unpack(packed, tables.planes), tables) * scale_value(scale, 0).to(tables.turn.dtype)


def fill(into: Tensor, standard: Tensor, scale: Tensor, tables: Tables) -> None:
    """Fill ``(batch, tokens, d)`` with the values of standard values: NaN where the backbone gave such."""
    into.copy_(torch.addcmul(tables.mean, standard, tables.spread).view_as(into))
    unknown = scale == NOT_FINITE
    if torch.compiler.is_compiling() or bool(unknown.any()):
        into.masked_fill_(unknown.view(*into.shape[:2], 1), torch.nan)


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
        return rest.mT[:0], scale_code(rest.sum(1) * 0 + 1)
    along = tables.turn @ rest.to(tables.turn.dtype).mT
    return along, scale_code((along.abs().sqrt_() * tables.share).sum(0, dtype=torch.float32).square())


def quantise(along: Tensor, scale: Tensor, half: Tensor) -> Tensor:
    """Give the codes ``(m, n)``, uint8, of :func:`measure`'s results; of a NaN any."""
    steps = torch.addcmul(half + 0.5, along, 1 / scale_value(scale, 1))
    return torch.minimum(steps.clamp_min_(0), 2 * half).to(torch.uint8)


def restore(scale: Tensor, codes: Tensor, predicted: Tensor | None, tables: Tables) -> Tensor:
    """Add what prediction left, as decoded, to what was predicted: nothing, where it is not finite."""
    if not len(tables.turn):
        none = torch.zeros(len(scale), len(tables.mean), dtype=tables.turn.dtype, device=scale.device)
        return none if predicted is None else predicted
    steps = _steps(codes, tables).mT @ tables.rebuild
    size = scale_value(scale, 0).to(steps.dtype)[:, None]
    return steps * size if predicted is None else predicted.addcmul_(steps, size)


def _steps(codes: Tensor, tables: Tables) -> Tensor:
    """Codes stand for the middles of their steps; of at most 8 bits, these are exact in bfloat16."""
    return (codes - tables.half).to(tables.turn.dtype)


def scale_code(scale: Tensor) -> Tensor:
    """Give the byte of a token's scale: its logarithm, an eighth of an octave a step."""
    code = (scale.log2() * PER_OCTAVE + UNIT).round_().clamp(0, NOT_FINITE - 1)
    return torch.where(scale.isfinite(), code, NOT_FINITE).to(torch.uint8)


def scale_value(code: Tensor, unknown: float) -> Tensor:
    """Give the scale of a byte, float32; ``unknown`` of a token that is not finite."""
    value = torch.exp2((code.float() - UNIT) / PER_OCTAVE)
    return torch.where(code == NOT_FINITE, unknown, value)


def fused(step: Step, device: torch.device) -> Step:
    """Compile a step for CUDA, where there is what Triton builds with; elsewhere the step is as good."""
    return _compiled(step) if why_not_triton(device) is None else step


@cache
def _compiled(step: Step) -> Step:
    return cast(Step, torch.compile(step, dynamic=True))
