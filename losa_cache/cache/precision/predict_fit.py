"""Fit a chain of predicted layers to a calibration sample (``docs/protocol.md``, section "Prediction").

The layers are fitted one after the other, each on the decoded layers before it. The predictor is a ridge regression.
The axes are the principal axes of its residual. The bits are distributed over them by reverse water-filling. Every axis
gets the step with the smallest error on the sample; this is a wide step if a few tokens are far out.

Channels are standardised, and tokens far larger than others weigh less. Large ViTs have channels and tokens of hundreds
of times the median; otherwise nearly all bits would go to these.

If a number of bits is given, the error that spends them is searched first, on a part of the sample. One relative error
for all layers amounts to equal slopes of rate and distortion, if distortion is relative to each layer's energy. y_0 is
allowed a fraction of that error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from losa_cache.cache.precision import token_codec
from losa_cache.cache.precision.allocation import BYTE, STEP, allocate
from losa_cache.cache.precision.base import Precision, relative_error
from losa_cache.cache.precision.layer_codec import LayerCodec
from losa_cache.cache.precision.predict_encoding import PREFIX, PredictEncoding
from losa_cache.cache.precision.token_codec import Tables

START_SHARE = 1 / 16  # of the other layers' error, that y_0 may have: all logits see it, the others are averaged over
FRESH_SHARE = 8  # one sample in so many is kept to measure the error on
SEARCHED_TOKENS = 8192
ROUNDS = 5  # of the search for the error that spends the bits
FIRST_ERROR, SEARCHED_ERRORS = 0.2, (1e-3, 1.0)
CLOSE = 0.02  # relative, where the search ends
TIGHTER = 3  # times that a layer is quantised anew because it missed its error
RIDGE = 1e-2  # of the mean variance: less, and rounding of products counts for more, with nothing gained
FACTORS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0)  # of a normal variable's best step, which are tried
MEDIAN_TOKENS = 8192
NORMAL_DEVIATION = 1.4826  # of a normal variable, by its median magnitude
LEAST_SPREAD = 1e-3  # a channel that is mostly constant is measured by all of its values
LEAST = 1e-12


@dataclass(frozen=True)
class Target:
    """The target of a layer: a relative error, or the bits of a token."""

    error: float | None = None
    bits: int | None = None


@dataclass(frozen=True)
class Fitted:
    """A layer's codec, the variances of its residual along the principal axes, in descending order, and the mean square
    of a token.
    """

    codec: LayerCodec
    variances: list[float]
    energy: float


def fit_chain(
    precision: Precision,
    blocks: Sequence[Tensor],
    *,
    tokens: int,
    prefix: int,
    bits: float | None,
    error: float | None,
) -> PredictEncoding:
    """Fit a chain; some samples only measure the error.

    Args:
        precision: the precision that is fitted.
        blocks, tokens, prefix: as of ``Precision.fit``.
        bits: bits of a value; everything but the constants is counted. Or
        error: relative error of every layer but the last.
    """
    fresh = len(blocks[0]) // FRESH_SHARE
    patches = [block[fresh:, prefix:].flatten(0, 1) for block in blocks]
    targets = [Target(error=own) for own in _errors(error or 0.0, len(blocks))]
    if bits is not None:
        targets = _spend(bits, patches, tokens=tokens, prefix=prefix)
    prefixed = PREFIX.fit([block[fresh:, : prefix or None] for block in blocks], tokens=prefix, prefix=prefix)
    codecs = [fitted.codec for fitted in _chain(patches, targets, factors=FACTORS)]
    encoding = PredictEncoding(precision, codecs, prefixed, tokens, prefix, list(range(len(blocks))))
    seen = replace(encoding, tokens=blocks[0].shape[1])  # of tokens kept, as many as there are
    errors = _reached(seen, [block[: fresh or None] for block in blocks])
    return replace(encoding, errors=errors, fitted=_reached(seen, [block[fresh:] for block in blocks]))


def _reached(encoding: PredictEncoding, blocks: Sequence[Tensor]) -> list[float]:
    """Measure the relative error of every layer."""
    found: list[float] = []
    before = None
    for layer, block in enumerate(blocks):
        value, before = encoding.round(layer, block, before)
        found.append(relative_error(value, block))
    return found


def _errors(error: float, layers: int) -> list[float]:
    return [error] * (layers - 1) + [error * START_SHARE]


def _spend(bits: float, patches: Sequence[Tensor], *, tokens: int, prefix: int) -> list[Target]:
    """Divide a budget of bits among the layers such that all have the same relative error.

    That error follows from the variances of the residuals, which in turn depend, though weakly, on the error.
    """
    layers, width = len(patches), patches[0].shape[1]
    whole = bits * tokens * width * layers / BYTE - prefix * layers * PREFIX.columns(width)
    budget = max(0, int(whole / (tokens - prefix)) - layers)  # bytes of codes a token; its scales are a byte a layer
    chosen = torch.randperm(len(patches[0]), generator=torch.Generator().manual_seed(0))[:SEARCHED_TOKENS]
    sample = [block[chosen.to(block.device)] for block in patches]
    error = FIRST_ERROR
    for _ in range(ROUNDS):
        fitted = _chain(sample, [Target(error=own) for own in _errors(error, layers)], factors=())
        used = [sum(own.codec.bits) // BYTE for own in fitted]
        if abs(sum(used) - budget) <= CLOSE * budget:
            break
        error = _error_that_spends(budget, fitted)
    return [Target(bits=BYTE * own) for own in _scaled(used, budget)]


def _error_that_spends(budget: int, fitted: Sequence["Fitted"]) -> float:
    low, high = SEARCHED_ERRORS
    while high / low > 1 + CLOSE / 4:
        error = (low * high) ** 0.5
        allowed = [own**2 * layer.energy for own, layer in zip(_errors(error, len(fitted)), fitted, strict=True)]
        used = sum(sum(allocate(layer.variances, distortion=most)) for layer, most in zip(fitted, allowed, strict=True))
        low, high = (error, high) if used > BYTE * budget else (low, error)
    return (low * high) ** 0.5


def _scaled(used: Sequence[int], budget: int) -> list[int]:
    """Give shares of a budget in proportion, whole ones that add up to it."""
    total = max(1, sum(used))
    ends = [round(budget * sum(used[: at + 1]) / total) for at in range(len(used))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _chain(patches: Sequence[Tensor], targets: Sequence[Target], factors: Sequence[float]) -> list[Fitted]:
    """Fit every layer ``(tokens, width)`` on the decoded layer before it; ``factors`` are the multiples of the steps to
    try.
    """
    found: list[Fitted] = []
    before: Tensor | None = None
    for stored, target in zip(patches, targets, strict=True):
        plain, wanted, weight = _standard(torch.where(stored.isfinite(), stored, 0).float())
        energy = float((weight * wanted.square().sum(1)).mean())
        if before is not None:
            plain = replace(plain, predictor=_regression(before, wanted, weight))
        predicted = token_codec.predict(before, plain.tables)
        rest = wanted if predicted is None else wanted.sub_(predicted)
        found.append(_coded(plain, rest, weight, target, energy=energy, factors=factors))
        before = _decoded(rest, predicted, found[-1].codec.tables)
    return found


def _decoded(rest: Tensor, predicted: Tensor | None, tables: Tables) -> Tensor:
    """Give the decoded residual plus the prediction."""
    along, scale = token_codec.measure(rest, tables)
    codes = token_codec.quantise(along, scale, tables.half)
    return token_codec.restore(token_codec.dequantise(codes, scale, tables), predicted, tables)


def _standard(values: Tensor) -> tuple[LayerCodec, Tensor, Tensor]:
    """Standardise every channel, so that a few large channels or a few large tokens do not decide alone.

    Returns:
        a codec without axes, standardised values ``(tokens, d)``, and weights of the tokens: 1, or less for large
        tokens.
    """
    some = values[:: max(1, len(values) // MEDIAN_TOKENS)]
    middle = some.median(0).values
    usual = NORMAL_DEVIATION * (some - middle).abs().median(0).values
    overall = (values - middle).square().mean(0).sqrt()
    usual = torch.where(usual > LEAST_SPREAD * overall, usual, overall).clamp_min(LEAST)
    weight = 1 / ((values - middle) / usual).square().mean(1).clamp_min(1)
    total = weight.sum()
    mean = (weight @ values) / total
    spread = ((weight @ (values - mean).square()) / total).sqrt().clamp_min(LEAST)
    plain = LayerCodec(mean, spread, None, mean.new_empty(0, len(mean)).half(), (), mean[:0], mean[:0])
    return plain, token_codec.standardise(values, plain.tables), weight


def _regression(before: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Give the matrix ``(width, width)`` that predicts best, float16."""
    before = before.float()
    weighted = (before * weight[:, None]).mT
    gram = (weighted @ before).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + LEAST)
    return torch.linalg.solve(gram, (weighted @ wanted).double()).half()


def _coded(
    plain: LayerCodec, rest: Tensor, weight: Tensor, target: Target, *, energy: float, factors: Sequence[float]
) -> Fitted:
    """Choose axes, bits and steps for the residual."""
    found, vectors = torch.linalg.eigh(((rest * weight[:, None]).mT @ rest).double() / len(rest))
    variances, axes = found.flip(0).clamp_min(0).tolist(), vectors.flip(1).mT
    if target.error is None:
        bits = allocate(variances, bits=target.bits)
        return Fitted(_quantised(plain, rest, weight, axes, variances, bits, factors), variances, energy)
    allowed = wanted = target.error**2 * energy
    for _ in range(TIGHTER):
        bits = allocate(variances, distortion=allowed)
        codec = _quantised(plain, rest, weight, axes, variances, bits, factors)
        missed = float((weight * (rest - _decoded(rest, None, codec.tables)).square().sum(1)).mean())
        if missed <= wanted * (1 + CLOSE):
            break
        allowed *= wanted / missed
    return Fitted(codec, variances, energy)


def _quantised(
    plain: LayerCodec,
    rest: Tensor,
    weight: Tensor,
    axes: Tensor,
    variances: Sequence[float],
    bits: Sequence[int],
    factors: Sequence[float],
) -> LayerCodec:
    """Choose the steps of these axes on a part of the sample; ``bits`` fall, as ``variances`` do."""
    kept = tuple(sorted((own for own in bits if own), reverse=True))
    turn = axes[: len(kept)].half()
    sample, weight = rest[:SEARCHED_TOKENS], weight[:SEARCHED_TOKENS]
    exact = turn.float() @ sample.mT
    magnitudes = (exact.abs().sqrt() @ weight**0.25 / len(weight)).square().clamp_min(LEAST)  # in tokens' own sizes
    spread = torch.tensor(variances[: len(kept)], device=rest.device).sqrt().float().clamp_min(LEAST)
    usual = spread * torch.tensor([STEP[own] for own in kept], device=rest.device)
    codec = replace(plain, axes=turn, bits=kept, step_sizes=usual, deviations=magnitudes)
    _, scale = token_codec.measure(sample, codec.tables)
    size = token_codec.scale_value(scale, torch.nan)
    best, least = usual, torch.full_like(usual, torch.inf)
    for factor in factors if kept else ():
        tried = usual * factor
        codes = token_codec.quantise(exact / tried[:, None], scale, codec.tables.half)
        lost = (exact - (codes - codec.tables.half) * size * tried[:, None]).square() @ weight
        best = torch.where(lost < least, tried, best)
        least = torch.minimum(lost, least)
    return replace(codec, step_sizes=best)
