"""Random numbers that depend only on a seed and a step.

So they are the same on every device, in the replay of a CUDA graph, after a stop, and for all trials of a stack.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORDS = 4  # of 16 bits in a hash


def _signed(value: int) -> int:
    """Give the same 64 bits as torch has them."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
SHIFTS, FACTORS = (30, 27, 31), (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


@dataclass(frozen=True)
class Noise:
    """Numbers in steps of 2^-16, by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of their place.

    Attributes:
        seed: of a run.
        step: int64 ``()``, on the device of the numbers; another step has other numbers.
        stream: gives other numbers for another purpose.
    """

    seed: int
    step: Tensor
    stream: int

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw from [0, 1), float32: the centres of 2^16 equal parts."""
        count = math.prod(shape)
        return self._uniform(count).view(*shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw from the standard normal distribution, float32, by Box and Muller's pairs; none lies beyond 4.9."""
        count = math.prod(shape)
        radius, angle = self._uniform(count + count % 2).chunk(2)
        radius, angle = radius.log().mul_(-2).sqrt_(), angle * (2 * math.pi)
        return torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)])[:count].view(*shape)

    def _uniform(self, count: int) -> Tensor:
        key = _mix(self.step * GOLDEN + _signed(self.seed * FACTORS[0] + self.stream * FACTORS[1]))
        places = torch.arange(-(-count // WORDS), device=self.step.device)
        words = _mix(places.mul_(GOLDEN).add_(key)).view(torch.int16)[:count]
        return words.float().add_(2**15 + 0.5).mul_(2**-16)


def _mix(bits: Tensor) -> Tensor:
    """Hash, in place. A shift of torch's is an arithmetic one: the bits that it brings in are cleared."""
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        bits ^= (bits >> shift).bitwise_and_(2 ** (64 - shift) - 1)
        bits *= factor
    return bits
