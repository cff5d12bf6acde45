"""Layer norm of block outputs by a Triton kernel: it reads every value once, and pools the normed tokens on the way.

The oracle is :meth:`losa_cache.sidenet.pooled.Pooling.by_torch`, which on a GPU reads and writes a float32 copy of the
block several times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.sidenet.kernels.values import readable
from losa_cache.sidenet.operand import Block, Gathered

TOKENS = 32  # of a program
VALUES = 4096  # that a program holds at once
WARPS = 4


@triton.jit
def _norm(
    values, rows, out, sums, class_share, patch_share,
    n: tl.constexpr, d: tl.constexpr, classes: tl.constexpr, prefix: tl.constexpr, eps: tl.constexpr,
    gathered: tl.constexpr, parts: tl.constexpr, tokens: tl.constexpr, step: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Norm a part of a sample's tokens, and add up its share of the rows."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source = sample
    if gathered:
        source = tl.load(rows + sample)
    channel = tl.arange(0, columns)
    class_sum = tl.zeros((columns,), dtype=tl.float32)
    patch_sum = tl.zeros((columns,), dtype=tl.float32)
    for first in range(0, tokens, step):
        token = part * tokens + first + tl.arange(0, step)
        there = (token < n)[:, None] & (channel < d)[None, :]
        at = token[:, None] * d + channel[None, :]
        x = tl.load(values + source * n * d + at, mask=there, other=0).to(tl.float32)
        centred = tl.where(there, x - (tl.sum(x, axis=1) / d)[:, None], 0.0)
        normed = centred / tl.sqrt(tl.sum(centred * centred, axis=1) / d + eps)[:, None]
        tl.store(out + sample * n * d + at, normed.to(out.dtype.element_ty), mask=there)
        class_sum += tl.sum(tl.where((token < classes)[:, None], normed, 0.0), axis=0)
        patch_sum += tl.sum(tl.where((token >= prefix)[:, None], normed, 0.0), axis=0)
    into = sums + (sample * parts + part) * 2 * d + channel
    tl.store(into, class_sum * class_share, mask=channel < d)
    tl.store(into + d, patch_sum * patch_share, mask=channel < d)


def takes(block: Block) -> bool:
    """Tell whether the kernel can read a block output as it lies in memory."""
    return isinstance(block, Tensor | Gathered) and readable(block)


def normed(block: Tensor | Gathered, *, classes: int, prefix: int, eps: float) -> tuple[Tensor, Tensor]:
    """Norm each token, and average the class tokens and the patches.

    Args:
        block: ``(batch, n, d)``, which :func:`takes` accepts.
        classes: class tokens, the first of all.
        prefix: tokens before the patches.
        eps: of the norm.

    Returns:
        the normed tokens, in the block's dtype; and the means, float32 ``(batch, 2, d)``: zeros without class tokens.
    """
    kept, rows = (block.kept, block.rows) if isinstance(block, Gathered) else (block, None)
    batch = len(kept) if rows is None else len(rows)
    _, n, d = kept.shape
    columns, parts = triton.next_power_of_2(d), triton.cdiv(n, TOKENS)
    out = kept.new_empty(batch, n, d)
    sums = torch.empty(batch, parts, 2, d, dtype=torch.float32, device=kept.device)
    with torch.cuda.device_of(kept):
        _norm[(batch, parts)](
            kept, kept if rows is None else rows, out, sums, 1 / max(1, classes), 1 / (n - prefix),
            n=n, d=d, classes=classes, prefix=prefix, eps=eps, gathered=rows is not None, parts=parts,
            tokens=TOKENS, step=min(TOKENS, max(1, VALUES // columns)), columns=columns, num_warps=WARPS,
        )  # fmt: skip
    return out, sums.sum(1)
