"""Sizes of the kernels' tiles, as measured on GPUs with 132 multiprocessors (``benchmarks/gpu.py --only tiles``)."""

from dataclasses import dataclass, field, replace

import torch

Tile = dict[str, int]
LOW = 32  # rank, up to which few registers hold a layer's rows


def precision_of(dtype: torch.dtype) -> str:
    """Name Triton's precision of products: full, where operands are float32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def whole(rank: int) -> int:
    """Fill a layer's rows up to what a product of matrices takes: a power of two from 16 on."""
    return max(16, 1 << (rank - 1).bit_length())


@dataclass(frozen=True)
class Tiles:
    """One tile a kernel; ``num_warps`` and ``num_stages`` are Triton's.

    Attributes:
        project_channel, project_token, correlate_channel, correlate_token: of :mod:`losa_cache.sidenet.kernels.stream`.
        follow, follow_high: of :mod:`losa_cache.sidenet.kernels.states`, up to rank ``LOW`` and above it.
        programs: that a sum is split over.
        rows: of all trials' matrices that a program multiplies at most.
    """

    project_channel: Tile = field(default_factory=lambda: {"tokens": 64, "step": 64, "num_warps": 4, "num_stages": 3})
    project_token: Tile = field(default_factory=lambda: {"channels": 128, "step": 32, "num_warps": 4, "num_stages": 3})
    correlate_channel: Tile = field(
        default_factory=lambda: {"channels": 128, "step": 32, "num_warps": 4, "num_stages": 3}
    )
    correlate_token: Tile = field(default_factory=lambda: {"tokens": 64, "step": 64, "num_warps": 4, "num_stages": 3})
    follow: Tile = field(
        default_factory=lambda: {
            "lines": 64, "step": 128, "columns": 256, "inner_step": 32, "num_warps": 4, "num_stages": 3,
        }
    )  # fmt: skip
    follow_high: Tile = field(
        default_factory=lambda: {
            "lines": 64, "step": 128, "columns": 128, "inner_step": 64, "num_warps": 8, "num_stages": 2,
        }
    )  # fmt: skip
    programs: int = 528
    rows: int = 128

    def group(self, rows: int) -> int:
        """Choose how many rows of all trials' matrices of a layer a program multiplies: a power of two from 16 on."""
        return min(max(16, self.rows), whole(rows))


FEW = Tiles()
MANY = replace(
    FEW,
    correlate_channel={"channels": 256, "step": 64, "num_warps": 8, "num_stages": 3},
    correlate_token={"tokens": 128, "step": 64, "num_warps": 4, "num_stages": 3},
)
"""For more than ``FEW_ROWS`` rows of all trials' matrices of a layer."""
FEW_ROWS = 64


def tiles_for(rows: int) -> Tiles:
    """Choose tiles for so many rows of all trials' matrices of a layer."""
    return FEW if rows <= FEW_ROWS else MANY
