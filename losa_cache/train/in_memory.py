"""Rows of a cache kept in memory, the host's or a GPU's."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORDS = (torch.int64, torch.int32, torch.int16)


class Reader(Protocol):
    """Whence batches are filled.

    Attributes:
        device: of the tensors that it fills.
        waits: reading waits for more than this machine's cores.
    """

    device: torch.device
    waits: bool

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Say that these rows will be read soon."""
        ...

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Fill one tensor a plane, or a point, with these rows."""
        ...

    def close(self) -> None:
        """Let go of threads, files and memory."""
        ...


class MemoryReader:
    """Rows kept in memory, any of them in any order at the speed of a copy.

    Args:
        kept: one tensor a plane or, decoded, a point, ``(rows kept, tokens, columns or width)``.
        rows: which rows of the cache they are, int64 ``(rows kept,)``.
    """

    waits = False

    def __init__(self, kept: Sequence[Tensor], rows: NDArray[np.int64]) -> None:
        self.device = kept[0].device
        self.kept = list(kept)
        self._places = np.full(int(rows.max(initial=-1)) + 1, -1)
        self._places[rows] = np.arange(len(rows))

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Say where these rows lie in the tensors; -1: a row is not kept here."""
        known = rows < len(self._places)
        return np.where(known, self._places[np.where(known, rows, 0)], -1) if len(self._places) else rows * 0 - 1

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: they are here."""

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Copy rows into place, by all cores."""
        places = torch.from_numpy(self.find(rows)).to(self.device)
        for kept, target in zip(self.kept, targets, strict=True):
            gather(kept, places, target[: len(rows)])

    def close(self) -> None:
        """Free the memory."""
        self.kept.clear()


def gather(kept: Tensor, places: Tensor, target: Tensor) -> None:
    """Copy rows of ``kept`` ``(N, …)`` to ``target`` ``(batch, …)``, both contiguous, by their places ``(batch,)``."""
    torch.index_select(in_words(kept), 0, places, out=in_words(target))


def in_words(tensor: Tensor) -> Tensor:
    """View each row of a contiguous tensor as few wide integers: a GPU moves rows element by element."""
    rows = tensor.flatten(1)
    size = rows.shape[1] * rows.element_size()
    word = next((word for word in WORDS if size % word.itemsize == 0 and word.itemsize > rows.element_size()), None)
    return rows if word is None else rows.view(word)
