"""Samples in the order of their scores, with those of equal scores together."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ordering:
    """The order of scores ``(..., N)`` along their last axis.

    Attributes:
        scores: in ascending order, or in descending.
        places: int64 ``(..., N)``, the sample at each place.
        first, last: int64 ``(..., N)``, where the run of equal scores begins and ends in which a place lies.
    """

    scores: Tensor
    places: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, scores: Tensor, *, descending: bool = False) -> "Ordering":
        """Sort scores."""
        ordered, places = scores.sort(dim=-1, descending=descending)
        changes = ordered[..., 1:] != ordered[..., :-1]
        end = torch.ones_like(ordered[..., :1], dtype=torch.bool)
        number = torch.arange(ordered.shape[-1], device=scores.device).expand_as(places)
        first = number.where(torch.cat([end, changes], -1), 0).cummax(-1).values
        after = number.where(torch.cat([changes, end], -1), ordered.shape[-1]).flip(-1)
        return cls(ordered, places, first, after.cummin(-1).values.flip(-1))

    def sort(self, values: Tensor) -> Tensor:
        """Put values of samples ``(..., N)`` into this order; the leading axes broadcast."""
        return _gather(values, self.places)

    def before_and_through(self, sorted_: Tensor) -> tuple[Tensor, Tensor]:
        """Sum values in this order up to the run in which a place lies: without the run, and with it."""
        through = sorted_.cumsum(-1)
        before = torch.cat([torch.zeros_like(through[..., :1]), through[..., :-1]], -1)
        return _gather(before, self.first), _gather(through, self.last)


def _gather(values: Tensor, places: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(values.shape, places.shape)
    return values.expand(shape).gather(-1, places.expand(shape))
