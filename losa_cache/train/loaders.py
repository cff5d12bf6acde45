"""Rows of a cache to a batch's tensors, where the rows lie in the memory of the device that trains."""

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
        rows: of the cache.
        blocks: one a plane, or a point where they are decoded: ``(batch, tokens, columns or width)``.
        nbytes: read on the host.
        seconds: that reading took.
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
    """Memory for batches, which are read into one slot while another is used.

    Args:
        count: of slots.
        shape: of a sample: planes, tokens, columns.
        dtype: of an element.
        device: where they lie.
        pin: page-lock them.
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
        """Allocate buffers for batches of so many rows, unless they are that large already."""
        if self._grown and self._grown[-1][0].shape[1] >= rows:
            return
        planes, *rest = self._shape
        with torch.inference_mode(False):  # an evaluation may ask first, or for more, and training reads them then
            shape = (planes, rows + -rows % ALIGNED, *rest)
            self._grown.append([allocate(shape, self._dtype, self._device, pin=self._pin) for _ in range(self._count)])

    def planes(self, slot: int, rows: int) -> list[Tensor]:
        """Give the first rows of a slot, a tensor a plane."""
        return [plane[:rows] for plane in self._grown[-1][slot]]


def longest(rows: Sequence[NDArray[np.int64]]) -> int:
    """Give the rows of the largest batch."""
    return max(map(len, rows), default=0)


class HostLoader:
    """Batches for a CPU, read into memory that the step then reads.

    What keeps the machine's cores busy, a copy out of memory or out of the page cache, is done by all of them between
    two steps, for beside a step on the CPU it would cost both more than their sum; the system only reads ahead. What
    waits for a disk or a server is done by threads while the batch before trains.

    Args:
        reader: of rows, on the CPU.
        shape, dtype: of what it gives (:class:`Buffers`).
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
    """Batches out of the training device's own memory: as they lie there, or gathered into one tensor a plane.

    Args:
        kept: all rows that will be asked for, on the device.
        in_place: copy nothing: say where the rows lie.
        watch: counts what the device gathers.
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
    """Put the rows of all batches behind one another."""
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])
