"""Make batches from rows of a cache in the memory of the training device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.machine.memory import allocate
from losa_cache.machine.prefetch import work_ahead
from losa_cache.sidenet.operand import Gathered
from losa_cache.train.in_memory import MemoryReader, Reader, gather
from losa_cache.train.stopwatch import Stopwatch

SLOTS = 2
ALIGNED = 16  # bytes that a GPU reads at once: as many rows a plane, or a multiple, let every plane begin so


@dataclass(frozen=True)
class Loaded:
    """A batch on the training device, until the next one is asked for.

    Attributes:
        rows: their numbers in the cache.
        blocks: one for each plane, or for each point if they are decoded: ``(batch, tokens, columns or width)``.
        nbytes: bytes read on the host.
        seconds: duration of the reads.
    """

    rows: NDArray[np.int64]
    blocks: Sequence[Tensor | Gathered]
    nbytes: int = 0
    seconds: float = 0.0


class Loader(Protocol):
    """Batches of rows. Their tensors belong to the loader, which frees none of them before it is closed."""

    def batches(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Loaded]:
        """Yield a batch for each array of rows, in order."""
        ...

    def close(self) -> None:
        """Let go of threads, files and memory."""
        ...


class Buffers:
    """Memory for batches: one slot is filled while another is used.

    Args:
        count: number of slots.
        shape: shape of a sample: planes, tokens, columns.
        dtype: dtype of an element.
        device: device of the memory.
        pin: whether it is page-locked.
    """

    def __init__(
        self, count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, pin: bool = False
    ) -> None:
        self._count, self._shape, self._dtype, self._device, self._pin = count, tuple(shape), dtype, device, pin
        # A tensor a slot: a step that saves one for the way back must not see that another one is written. None is
        # freed: a CUDA graph may go on reading where it once read.
        self._grown: list[list[Tensor]] = []

    def __len__(self) -> int:
        return self._count

    def grow(self, rows: int) -> None:
        """Allocate buffers for batches of so many rows, unless the buffers are that large already."""
        if self._grown and self._grown[-1][0].shape[1] >= rows:
            return
        planes, *rest = self._shape
        with torch.inference_mode(False):  # an evaluation may ask first, or for more, and training reads them then
            shape = (planes, rows + -rows % ALIGNED, *rest)
            self._grown.append([allocate(shape, self._dtype, self._device, pin=self._pin) for _ in range(self._count)])

    def planes(self, slot: int, rows: int) -> list[Tensor]:
        """Give the first rows of a slot, one tensor for each plane."""
        return [plane[:rows] for plane in self._grown[-1][slot]]


def longest(rows: Sequence[NDArray[np.int64]]) -> int:
    """Give the rows of the largest batch."""
    return max(map(len, rows), default=0)


class HostLoader:
    """Batches for a CPU, read into memory that the step then reads.

    Copies out of memory or out of the page cache keep all cores busy. They are done between two steps, because at the
    same time as a step on the CPU both together would take longer; the system only reads ahead. Reads that wait for a
    disk or a server are done by threads during the step before.

    Args:
        reader: reads rows to CPU tensors.
        shape, dtype: shape and dtype of its rows, as in :class:`Buffers`.
    """

    def __init__(self, reader: Reader, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._reader = reader
        self._slots = Buffers(SLOTS if reader.waits else 1, shape, dtype, reader.device)

    def batches(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Loaded]:
        """Yield a batch for each array of rows, in order."""
        self._slots.grow(longest(rows))
        numbered = [(at % len(self._slots), batch) for at, batch in enumerate(rows)]
        if self._reader.waits:
            yield from work_ahead(self._fill, numbered)
            return
        for this, following in zip_longest(numbered, numbered[1:]):
            if following is not None:
                self._reader.expect(following[1])
            yield self._fill(this)

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _fill(self, slot_rows: tuple[int, NDArray[np.int64]]) -> Loaded:
        slot, rows = slot_rows
        blocks = self._slots.planes(slot, len(rows))
        started = perf_counter()
        self._reader.read(rows, blocks)
        return Loaded(rows, blocks, sum(block.nbytes for block in blocks), perf_counter() - started)


class DeviceLoader:
    """Batches out of the training device's own memory: in place, or gathered into one tensor for each plane.

    Args:
        kept: all rows that will be requested, on the device.
        in_place: copy nothing; give the positions of the rows.
        watch: measures the time of gathering.
    """

    def __init__(self, kept: MemoryReader, watch: Stopwatch, *, in_place: bool) -> None:
        self._kept, self._watch, self._in_place = kept, watch, in_place
        first = kept.kept[0]
        self._rows = Buffers(1, (1,), torch.int64, kept.device)
        self._slots = Buffers(1, (len(kept.kept), *first.shape[1:]), first.dtype, kept.device)

    def batches(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Loaded]:
        """Yield a batch for each array of rows, in order."""
        self._rows.grow(longest(rows))
        if not self._in_place:
            self._slots.grow(longest(rows))
        every = torch.from_numpy(self._kept.find(joined(rows))).to(self._kept.device)  # one transfer for all batches
        for batch, found in zip(rows, every.split([len(batch) for batch in rows]), strict=True):
            (places,) = self._rows.planes(0, len(batch))
            places.copy_(found)
            if self._in_place:
                yield Loaded(batch, [Gathered(kept, places) for kept in self._kept.kept])
                continue
            blocks = self._slots.planes(0, len(batch))
            with self._watch.computing("read"):
                for kept, block in zip(self._kept.kept, blocks, strict=True):
                    gather(kept, places, block)
            yield Loaded(batch, blocks)

    def close(self) -> None:
        """Free the memory."""
        self._kept.close()


def joined(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Concatenate the rows of all batches."""
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])
