"""Distribution of bits over the axes of a residual: reverse water-filling for quantisers of whole bits (pure).

An axis of variance v that is stored in k bits is decoded with an error of about v * DISTORTION[k], for any v. This is
the error of a uniform quantiser of 2^k steps with the best step for a normal variable (Max 1960, "Quantizing for
minimum distortion", Table II, as far as it goes). So the next bit goes to the axis where it reduces the error most, and
axes of small variance get none.
"""

import heapq
from collections.abc import Sequence

DISTORTION = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001040, 0.0003043, 0.00008769)
"""Mean squared error by bits, of variance 1."""
STEP = (0.0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.05687, 0.03076)
"""Best step by bits, of variance 1."""
MOST_BITS = len(DISTORTION) - 1
BYTE = 8


def allocate(variances: Sequence[float], *, distortion: float | None = None, bits: int | None = None) -> list[int]:
    """Spend bits until the error is small enough, or until so many are spent; the sum is a whole number of bytes.

    Args:
        variances: variance of each axis, not negative.
        distortion: allowed sum of squared errors; or
        bits: how many to spend, a multiple of 8 (at most 8 an axis).

    Returns:
        bits of each axis, 0 ... 8, in the order of ``variances``; together a multiple of 8.
    """
    spent = [0] * len(variances)
    heap = [(-v * (DISTORTION[0] - DISTORTION[1]), axis) for axis, v in enumerate(variances)]
    heapq.heapify(heap)
    left, total = sum(variances), 0
    while heap and (total % BYTE or (left > (distortion or 0.0) if bits is None else total < bits)):
        gain, axis = heapq.heappop(heap)
        spent[axis] += 1
        total, left, k = total + 1, left + gain, spent[axis]
        if k < MOST_BITS:
            heapq.heappush(heap, (-variances[axis] * (DISTORTION[k] - DISTORTION[k + 1]), axis))
    return spent
