"""Batches that are copied from the host to the training device while the batch before them trains."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.machine.device import on_stream, side_stream
from losa_cache.machine.prefetch import work_ahead
from losa_cache.train.in_memory import MemoryReader, Reader, gather, in_words
from losa_cache.train.loaders import SLOTS, Buffers, Loaded, longest
from losa_cache.train.stopwatch import Stopwatch


class TransferLoader:
    """Read rows into page-locked slots of the host and copy them to slots of the device; some rows may lie there.

    A thread reads and asks for copies on a stream of its own. That stream waits until the stream that trains has done
    with a slot, and the stream that trains waits for the copies; the host waits only before it reads into a slot whose
    copy is under way.

    Args:
        reader: of rows on the host.
        shape, dtype: of what it gives (:class:`losa_cache.train.loaders.Buffers`).
        device: that trains. On a CPU, for tests, everything is done at once and in order.
        watch: counts how long the device waits for copies.
        hot: rows that lie on the device already; the reader has the others.
    """

    def __init__(
        self,
        reader: Reader,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        watch: Stopwatch,
        *,
        hot: MemoryReader | None = None,
    ) -> None:
        self._reader, self._hot, self._device, self._watch = reader, hot, device, watch
        cuda = device.type == "cuda"
        self._stream = side_stream(device)
        self._host = Buffers(SLOTS, shape, dtype, reader.device, pin=cuda)
        self._there = Buffers(SLOTS, shape, dtype, device)
        # of rows that lie here and there: a plane that has crossed, and where rows come from and go to
        self._crossed = Buffers(1, (1, *shape[1:]), dtype, device)
        self._host_places = Buffers(SLOTS, (2,), torch.int64, reader.device, pin=cuda)
        self._places = Buffers(1, (2,), torch.int64, device)
        self._sent: list[torch.cuda.Event | None] = [None] * SLOTS
        self._free: list[torch.cuda.Event | None] = [None] * SLOTS

    def batches(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Loaded]:
        """Yield a batch for each array of rows, in order."""
        for slots in (self._host, self._there):
            slots.grow(longest(rows))
        if self._hot is not None:
            for slots in (self._crossed, self._host_places, self._places):
                slots.grow(longest(rows))
        self._free = [self._now()] * SLOTS  # also of what the last call left unread, and of memory that is new
        numbered = [(at % SLOTS, batch) for at, batch in enumerate(rows)]
        try:
            with closing(work_ahead(self._fill, numbered)) as filling:
                for (slot, _), filled in zip(numbered, filling, strict=True):
                    if (sent := self._sent[slot]) is not None:
                        with self._watch.computing("copy"):
                            torch.cuda.current_stream(self._device).wait_event(sent)
                    yield filled
                    self._free[slot] = self._now()
        finally:
            if self._stream is not None:  # a batch that was not taken is on its way
                torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def close(self) -> None:
        """Stop reading, and free what is kept."""
        if self._stream is not None:
            self._stream.synchronize()
        self._reader.close()
        if self._hot is not None:
            self._hot.close()

    def _now(self) -> torch.cuda.Event | None:
        """Mark what the stream that trains was asked for so far."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def _fill(self, slot_rows: tuple[int, NDArray[np.int64]]) -> Loaded:
        slot, rows = slot_rows
        if (sent := self._sent[slot]) is not None:
            sent.synchronize()  # the device must have taken what the slot held
        places = np.full(len(rows), -1) if self._hot is None else self._hot.find(rows)
        (cold,) = np.nonzero(places < 0)
        host, there = self._host.planes(slot, len(cold)), self._there.planes(slot, len(rows))
        started = perf_counter()
        self._reader.read(rows[cold], host)
        seconds = perf_counter() - started
        with on_stream(self._stream):
            if self._stream is not None and (free := self._free[slot]) is not None:
                self._stream.wait_event(free)
            if self._hot is None or len(cold) == len(rows):
                for plane, target in zip(host, there, strict=True):
                    target.copy_(plane, non_blocking=True)
            else:
                self._join(self._hot, slot, places, cold, host, there)
            if self._stream is not None:
                self._sent[slot] = self._stream.record_event()
        return Loaded(rows, there, sum(plane.nbytes for plane in host), seconds)

    def _join(
        self,
        hot: MemoryReader,
        slot: int,
        places: NDArray[np.int64],
        cold: NDArray[np.int64],
        host: Sequence[Tensor],
        there: Sequence[Tensor],
    ) -> None:
        """Gather hot rows where they lie, and put those that cross between them."""
        sources, targets = self._host_places.planes(slot, len(places))
        sources.numpy()[:] = np.maximum(places, 0)  # any row stands for one that is yet to come
        targets.numpy()[: len(cold)] = cold
        for ours, theirs in zip(self._places.planes(0, len(places)), (sources, targets), strict=True):
            ours.copy_(theirs, non_blocking=True)
        sources, targets = self._places.planes(0, len(places))
        (crossed,) = self._crossed.planes(0, len(cold))
        for kept, plane, target in zip(hot.kept, host, there, strict=True):
            gather(kept, sources, target)
            crossed.copy_(plane, non_blocking=True)
            in_words(target).index_copy_(0, targets[: len(cold)], in_words(crossed))
