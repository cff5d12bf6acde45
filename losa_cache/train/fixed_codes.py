"""A batch of codes at fixed addresses, so that a CUDA graph can read them in every replay."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from losa_cache.factors import Codes
from losa_cache.sidenet.operand import Block
from losa_cache.train.loaders import Buffers


class FixedCodes:
    """Memory for the parts of a batch of int8 codes that are computed for every batch: the tokens' scales, and y_0.

    Args:
        points: block outputs of a batch.
        tokens, width: shape of each block output.
        dtype: dtype of a value.
        device: device of the memory.
    """

    def __init__(self, points: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._scales = Buffers(1, (points - 1, tokens), torch.bfloat16, device)
        self._start = Buffers(1, (1, tokens, width), dtype, device)

    def write(self, blocks: Sequence[Codes], rows: int) -> list[Block]:
        """Copy a batch to the fixed addresses and give it with these addresses; the last block output is decoded.

        Args:
            blocks: their codes and the scales of their channels are at fixed addresses already.
            rows: size of the largest batch to come.
        """
        *others, last = blocks
        for slots in (self._scales, self._start):
            slots.grow(rows)
        scales, (start,) = self._scales.planes(0, len(last.tokens)), self._start.planes(0, len(last.tokens))
        start.copy_(last.dense())
        written = [
            replace(block, tokens=scale.copy_(block.tokens)) for block, scale in zip(others, scales, strict=True)
        ]
        return [*written, start]
