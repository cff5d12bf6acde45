"""Block outputs in memory that are layer-normed once, in place of once in every step."""

import torch
from torch import Tensor

from losa_cache.sidenet.operand import Block, Gathered, Normed
from losa_cache.sidenet.pooled import Pooling
from losa_cache.train.in_memory import MemoryReader
from losa_cache.train.loaders import Buffers, Loaded


def pooled_bytes(pooling: Pooling | None, tokens: int, width: int, dtype: torch.dtype) -> int:
    """Give the bytes of the rows that are kept beside a block output that is normed in memory.

    Where they would be as many as those of the tokens, as in a cache of pooled rows, none are kept: memory would double
    or more, and a few tokens are normed in every step in no time.

    Args:
        pooling: of the model; ``None``: it norms nothing.
        tokens, width: of a block output.
        dtype: of its values.

    Returns:
        the bytes, or 0 if it is not normed there.
    """
    if pooling is None:
        return 0
    rows = pooling.rows * width * torch.promote_types(dtype, torch.float32).itemsize
    return rows if rows < tokens * width * dtype.itemsize else 0


class NormedRows:
    """The rows that were pooled while the tokens were normed.

    The norm has no parameters, so its result is the same in every epoch.

    Args:
        memory: block outputs, which are replaced by their normed tokens.
        pooling: of the model that reads them.
    """

    def __init__(self, memory: MemoryReader, pooling: Pooling) -> None:
        self._memory = memory
        with torch.no_grad():
            self._pooled = pooling.norm_in_place(memory.kept)
        self._slot = Buffers(1, (1, *self._pooled.shape[1:]), self._pooled.dtype, self._pooled.device)

    def batch(self, loaded: Loaded, largest: int) -> list[Block]:
        """Give the blocks of a batch, at fixed addresses.

        Args:
            loaded: tokens of the batch, out of the memory.
            largest: samples of the largest batch to come.
        """
        self._slot.grow(largest)
        (rows,) = self._slot.planes(0, len(loaded.rows))
        torch.index_select(self._pooled, 0, self._places(loaded), out=rows)
        return [_normed(block, rows[:, number]) for number, block in enumerate(loaded.blocks)]

    def _places(self, loaded: Loaded) -> Tensor:
        first = loaded.blocks[0]
        if isinstance(first, Gathered):
            return first.rows
        return torch.from_numpy(self._memory.find(loaded.rows)).to(self._pooled.device)


def _normed(block: Tensor | Gathered, rows: Tensor) -> Normed:
    if isinstance(block, Gathered):
        return Normed(block.kept, rows, block.rows)
    return Normed(block, rows)
