"""Pure planning of long reads: pieces of a file that lie next to each other, or nearly so, are read together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAP_BYTES = 4096  # that are read and thrown away: a page, which the system reads in any case


@dataclass(frozen=True)
class Runs:
    """Pieces of equal length, joined to runs.

    Attributes:
        begins, ends: int64, first byte of each run in the file, and the byte behind its last.
        at: int64, offset of each piece in the concatenated bytes of the runs.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    at: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes of all runs."""
        return int((self.ends - self.begins).sum())


def join(starts: NDArray[np.int64], length: int) -> Runs:
    """Join pieces to runs.

    Args:
        starts: offsets of the pieces, ascending, possibly repeated.
        length: of each.
    """
    (breaks,) = np.nonzero(starts[1:] > starts[:-1] + length + GAP_BYTES)
    begins = starts[np.concatenate([[0], breaks + 1])]
    ends = starts[np.concatenate([breaks, [len(starts) - 1]])] + length
    before = np.concatenate([[0], np.cumsum(ends - begins)[:-1]])
    sizes = np.diff(np.concatenate([[0], breaks + 1, [len(starts)]]))
    return Runs(begins, ends, starts - np.repeat(begins - before, sizes))


def cut_out(memory: NDArray[np.uint8], at: NDArray[np.int64], length: int) -> NDArray[np.uint8]:
    """Copy pieces of equal length out of memory.

    Args:
        memory: bytes.
        at: offsets of the pieces.
        length: of each.

    Returns:
        ``(pieces, length)``; a view if the pieces follow each other and fill the memory.
    """
    if len(memory) == len(at) * length and np.array_equal(at, np.arange(len(at)) * length):
        return memory.reshape(-1, length)
    windows = np.ndarray((len(memory) - length + 1,), dtype=f"V{length}", buffer=memory, strides=(1,))
    return windows[at].view(np.uint8).reshape(-1, length)
