"""A cache's block outputs, read once and kept in the memory of the host or of a GPU."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.precision import Encoding
from losa_cache.cache.reader import BlockReader
from losa_cache.memory import allocate
from losa_cache.train.residency import Residency

LOAD_ROWS = 32  # read at a time


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
        rows: which rows of the cache they are.
    """

    waits = False

    def __init__(self, kept: Sequence[Tensor], rows: NDArray[np.int64]) -> None:
        self.device = kept[0].device
        self._kept = list(kept)
        self._rows = rows
        self._places = torch.full((int(rows.max(initial=0)) + 1,), -1)
        self._places[torch.from_numpy(rows)] = torch.arange(len(rows))

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: they are here."""

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Copy rows into place, by all cores."""
        places = self._places[torch.from_numpy(rows)].to(self.device)
        for kept, target in zip(self._kept, targets, strict=True):
            torch.index_select(kept, 0, places, out=target[: len(rows)])

    def close(self) -> None:
        """Free the memory."""
        self._kept.clear()


def keep(
    reader: BlockReader,
    rows: NDArray[np.int64],
    encoding: Encoding,
    device: torch.device,
    residency: Residency,
    *,
    chosen: int,
) -> MemoryReader:
    """Read rows once, in the order of the disk, and keep them.

    Args:
        reader: of the cache, which is closed afterwards.
        rows: to keep, ascending.
        encoding: of the reader's points, on ``device``.
        device: that trains.
        residency: ``device`` or ``memory``; host memory is page-locked for a GPU, which then copies without waiting.
        chosen: how many points there are, where these are kept decoded.
    """
    cache, planes = reader.cache, len(reader.positions)
    tokens, columns = cache.layout.tokens, cache.layout.columns
    precision = encoding.precision
    place = device if residency.where == "device" else reader.device
    dtype, last = (precision.dtype, cache.manifest.width) if residency.decoded else (precision.stored_dtype, columns)
    pin = place.type != device.type
    count, tokens_kept = (chosen, cache.manifest.shape[1]) if residency.decoded else (planes, tokens)
    kept = [allocate((len(rows), tokens_kept, last), dtype, place, pin=pin) for _ in range(count)]
    straight = place == reader.device and not residency.decoded
    shape = (planes, 0 if straight else LOAD_ROWS, tokens, columns)
    buffer = allocate(shape, precision.stored_dtype, reader.device)
    for at in range(0, len(rows), LOAD_ROWS):
        cut = rows[at : at + LOAD_ROWS]
        reader.expect(rows[at + LOAD_ROWS : at + 2 * LOAD_ROWS])
        targets = [block[at : at + len(cut)] for block in kept]
        reader.read(cut, targets if straight else list(buffer))
        if not straight:
            here = [stored[: len(cut)].to(device) for stored in buffer]
            for target, block in zip(targets, encoding.decode(here) if residency.decoded else here, strict=True):
                target.copy_(block)
    reader.close()
    return MemoryReader(kept, rows)
