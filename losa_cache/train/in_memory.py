"""Rows of a cache that are kept in memory, that of the host or of a GPU."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.machine.device import default_workers

WORDS = (torch.int64, torch.int32, torch.int16)


class Reader(Protocol):
    """What fills batches with rows.

    Attributes:
        device: device of the tensors that it fills.
        waits: whether reading waits for a disk or a server, not only for this machine's cores.
    """

    device: torch.device
    waits: bool

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Announce that these rows will be read soon."""
        ...

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Fill one tensor for each plane, or for each point, with these rows."""
        ...

    def close(self) -> None:
        """Stop threads, close files and free memory."""
        ...


class MemoryReader:
    """Rows in memory; any rows in any order are read at the speed of a copy.

    Args:
        kept: one tensor ``(rows kept, tokens, columns or width)`` for each plane or, if they are decoded, for each
            point.
        rows: which rows of the cache they are, int64 ``(rows kept,)``.
    """

    waits = False

    def __init__(self, kept: Sequence[Tensor], rows: NDArray[np.int64]) -> None:
        self.device = kept[0].device
        self.kept = list(kept)
        self._places = np.full(int(rows.max(initial=-1)) + 1, -1)
        self._places[rows] = np.arange(len(rows))
        self._threads = ThreadPoolExecutor(default_workers(), "gather")

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the positions of these rows in the tensors; -1 for a row that is not kept here."""
        known = rows < len(self._places)
        return np.where(known, self._places[np.where(known, rows, 0)], -1) if len(self._places) else rows * 0 - 1

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: the rows are in memory."""

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Copy rows into place, by all cores."""
        places = self.find(rows)
        assert (places >= 0).all(), "rows that are kept here"
        targets = [target[: len(rows)] for target in targets]
        if self.device.type == "cpu":
            list(self._threads.map(partial(_copy_rows, places), self.kept, targets))
            return
        index = torch.from_numpy(places).to(self.device)
        for kept, target in zip(self.kept, targets, strict=True):
            gather(kept, index, target)

    def close(self) -> None:
        """Free the memory."""
        self._threads.shutdown()
        self.kept.clear()


def _copy_rows(places: NDArray[np.int64], kept: Tensor, target: Tensor) -> None:
    """Do on the host what :func:`gather` does: torch divides every row among its threads, which costs more than it
    saves.
    """
    source, into = (in_words(tensor) for tensor in (kept, target))
    if source.dtype == torch.bfloat16:  # numpy has none
        source, into = source.view(torch.int16), into.view(torch.int16)
    np.take(source.numpy(), places, axis=0, out=into.numpy(), mode="clip")  # other modes copy twice


def gather(kept: Tensor, places: Tensor, target: Tensor) -> None:
    """Copy rows of ``kept`` ``(N, …)`` to ``target`` ``(batch, …)``, both contiguous, by their places ``(batch,)``."""
    torch.index_select(in_words(kept), 0, places, out=in_words(target))


def in_words(tensor: Tensor) -> Tensor:
    """View each row of a contiguous tensor as few wide integers, because a GPU moves rows element by element."""
    rows = tensor.flatten(1)
    size = rows.shape[1] * rows.element_size()
    word = next((word for word in WORDS if size % word.itemsize == 0 and word.itemsize > rows.element_size()), None)
    return rows if word is None else rows.view(word)
