"""Triton kernels of the encodings for CUDA devices; what torch computes is their oracle.

Multiplications and additions are never contracted (:data:`EXACT`), so that a kernel rounds as torch's single operations
do. Sums over axes and logarithms may differ from torch's in their last bits.
"""

from typing import Any

EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""Options of every launch."""
