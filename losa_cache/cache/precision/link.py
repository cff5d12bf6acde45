"""One link of a chain: how a layer is predicted from the one before it, and what is left of it quantised."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from losa_cache.cache.precision import bitplanes
from losa_cache.device import has_bfloat16

NOT_FINITE = 255  # a token's scale, which decodes as NaN
UNIT, PER_OCTAVE = 128, 8  # scale 1, and scales from one to its double


@dataclass(frozen=True)
class Link:
    """How one layer is predicted, and what is left of it stored; m axes of d channels.

    Attributes:
        mean: float32 ``(d,)``, and
        spread: float32 ``(d,)``: values without the one, divided by the other, are standard values.
        predictor: float16 ``(d, d)``, from standard values of the layer before (rows) to those of this one; ``None``
            for the first.
        axes: float16 ``(m, d)``, orthonormal rows.
        bits: of each axis, falling.
        steps: float32 ``(m,)``, of the quantiser of each axis, for a token of scale 1.
        deviations: float32 ``(m,)``, usual magnitude along each axis: what tokens' scales are measured in.
    """

    mean: Tensor
    spread: Tensor
    predictor: Tensor | None
    axes: Tensor
    bits: tuple[int, ...]
    steps: Tensor
    deviations: Tensor

    @cached_property
    def counts(self) -> list[int]:
        """Axes in every bit plane."""
        return bitplanes.counts_of(self.bits)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token: its scale and its codes."""
        return 1 + sum(self.bits) // bitplanes.BYTE

    @cached_property
    def product(self) -> torch.dtype:
        """Dtype of matrix products."""
        return torch.bfloat16 if has_bfloat16(self.mean.device) else torch.float32

    @cached_property
    def _per_spread(self) -> Tensor:
        return 1 / self.spread

    @cached_property
    def _offset(self) -> Tensor:
        return -self.mean / self.spread

    @cached_property
    def rebuild(self) -> Tensor:
        """Give the matrix from steps along the axes to values, float32 ``(m, d)``."""
        return self.steps[:, None] * self.axes.float()

    @cached_property
    def middles(self) -> Tensor:
        """Give what is taken off a code, ``(m, 1)``: codes stand for the middles of their steps."""
        return (2.0 ** torch.tensor(self.bits, dtype=torch.float32, device=self.mean.device)[:, None] - 1) / 2

    @cached_property
    def _rebuild(self) -> Tensor:
        return self.rebuild.to(self.product)

    @cached_property
    def _turn(self) -> Tensor:
        """From values to steps."""
        return (self.axes.float() / self.steps[:, None]).to(self.product)

    @cached_property
    def _forecast(self) -> Tensor | None:
        return None if self.predictor is None else self.predictor.to(self.product)

    @cached_property
    def _share(self) -> Tensor:
        """What a step along each axis adds to the root of a token's scale.

        A mean of roots: what is far out along a few axes does not make the others coarse.
        """
        return ((self.steps / self.deviations).sqrt() / max(1, len(self.bits))).to(self.product)

    @cached_property
    def _most(self) -> Tensor:
        return 2 * self.middles

    @cached_property
    def _half(self) -> Tensor:
        return self.middles.to(self.product)  # of codes of at most 8 bits: exact in bfloat16

    def to(self, device: torch.device) -> "Link":
        """Move the constants."""
        return Link(
            mean=self.mean.to(device),
            spread=self.spread.to(device),
            predictor=None if self.predictor is None else self.predictor.to(device),
            axes=self.axes.to(device),
            bits=self.bits,
            steps=self.steps.to(device),
            deviations=self.deviations.to(device),
        )

    def standardise(self, values: Tensor) -> Tensor:
        """Give standard values, float32."""
        return torch.addcmul(self._offset, values, self._per_spread)

    def values(self, standard: Tensor) -> Tensor:
        """Give back values, float32."""
        return torch.addcmul(self.mean, standard, self.spread)

    def predict(self, before: Tensor | None, tokens: int) -> Tensor:
        """Predict standard values, float32 ``(tokens, d)``."""
        if self._forecast is None or before is None:
            return torch.zeros(tokens, len(self.mean), device=self.mean.device)
        return (before.to(self.product) @ self._forecast).float()

    def measure(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Measure what prediction left, ``(tokens, d)``, in steps along the axes, ``(m, tokens)``.

        Returns:
            them, and the tokens' scales, uint8.
        """
        if not self.bits:  # a scale that only says whether the token is finite
            return rest.mT[:0], scale_code(rest.sum(1) * 0 + 1)
        along = self._turn @ rest.to(self.product).mT
        return along, scale_code((self._share @ along.abs().sqrt_()).float().square_())

    def quantise(self, along: Tensor, scale: Tensor) -> Tensor:
        """Give the codes ``(m, tokens)``, uint8, of :meth:`measure`'s results; of a NaN any."""
        steps = torch.addcmul(self.middles + 0.5, along, 1 / scale_value(scale))
        return torch.minimum(steps.clamp_min_(0), self._most).to(torch.uint8)

    def walk(self, scale: Tensor, codes: Tensor) -> Tensor:
        """Give the steps along the axes that codes ``(m, ...)`` stand for, of tokens with scales ``(...)``."""
        half = self._half.view(-1, *[1] * scale.ndim)
        return (codes.to(self.product) - half) * scale_value(scale).to(self.product)

    def restore(self, scale: Tensor, codes: Tensor, onto: Tensor) -> Tensor:
        """Add what prediction left, as decoded, to what was predicted, ``(tokens, d)``."""
        if not self.bits:
            return onto
        steps = (codes.to(self.product) - self._half).mT @ self._rebuild
        return onto.addcmul_(steps, scale_value(scale)[:, None])

    def follow(self, predicted: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
        """Make of ``predicted`` what the next layer is predicted from: zeros, of a token that is not finite."""
        after = self.restore(scale, codes, predicted)
        unknown = scale == NOT_FINITE
        return after.masked_fill_(unknown[:, None], 0) if bool(unknown.any()) else after


def scale_code(scale: Tensor) -> Tensor:
    """Give the byte of a token's scale: its logarithm, an eighth of an octave a step."""
    code = (scale.log2() * PER_OCTAVE + UNIT).round_().clamp(0, NOT_FINITE - 1)
    return torch.where(scale.isfinite(), code, NOT_FINITE).to(torch.uint8)


def scale_value(code: Tensor) -> Tensor:
    """Give the scale of a byte, float32."""
    value = torch.exp2((code.float() - UNIT) / PER_OCTAVE)
    return torch.where(code == NOT_FINITE, torch.nan, value)
