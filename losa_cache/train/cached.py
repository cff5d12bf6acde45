"""Batches from a cache: the next one is read while this one trains."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.ahead import work_ahead
from losa_cache.cache.precision import Codes, Columns
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.roof import disk_speed, memory_speed
from losa_cache.cache.store import ActivationCache
from losa_cache.memory import allocate, available_memory
from losa_cache.sidenet.operand import Block, Product, Scaled
from losa_cache.train.account import Roof
from losa_cache.train.batch import Batch, Request
from losa_cache.train.in_memory import Reader, keep
from losa_cache.train.residency import DISK, Residency, Room, choose_residency
from losa_cache.train.sampler import rows_of, rows_of_samples, view_starts
from losa_cache.train.stopwatch import Stopwatch

log = logging.getLogger(__name__)

SLOTS = 2


@dataclass(frozen=True)
class Filled:
    """A batch on the training device.

    Attributes:
        rows: of the cache.
        blocks: one tensor a plane, or a point where they are decoded.
        sent: when they are all there, on a GPU that takes them from the host.
        nbytes: read.
        seconds: that reading took.
    """

    rows: NDArray[np.int64]
    blocks: list[Tensor]
    sent: torch.cuda.Event | None
    nbytes: int
    seconds: float


def open_cached(
    cache: ActivationCache,
    points: Sequence[str],
    device: torch.device,
    *,
    samples: NDArray[np.int64],
    passes: int,
    residency: str = "auto",
    seed: int = 0,
    rank: int = 0,
) -> "CachedSource":
    """Choose a residency, say why, and open the source.

    Args:
        samples: numbers of all that will be asked for.
        passes: times that each will be.
        residency: as asked for (:func:`choose_residency`).
        cache, points, device, seed, rank: as of :class:`CachedSource`.

    Raises:
        UserError: for a residency that cannot be.
    """
    precision, (_, tokens, width) = cache.precision, cache.manifest.shape
    count = len(samples) * cache.manifest.views
    planes = precision.planes([cache.manifest.points.index(point) for point in points])
    plain = precision.dtype == precision.stored_dtype or (rank > 0 and precision.folds)
    room = Room(
        stored=count * len(planes) * cache.layout.block_bytes,
        decoded=None if plain else count * len(points) * tokens * width * precision.dtype.itemsize,
        device=None if device.type == "cpu" else available_memory(device),
        memory=available_memory(torch.device("cpu")),
        passes=passes,
        remote=cache.remote,
    )
    chosen = choose_residency(residency, room)
    log.info(chosen.reason)
    return CachedSource(cache, points, device, seed=seed, rank=rank, residency=chosen, samples=samples)


class CachedSource:
    """Read batches into preallocated (pinned, for a GPU) buffers.

    What keeps the machine's cores busy, a copy out of memory or out of the page cache, is done by all of them between
    two steps, for beside a step on the CPU it would cost both more than their sum; the system only reads ahead. What
    waits for a disk, a server or a GPU is done by threads while the batch before trains.

    Args:
        cache: to read.
        points: what of it, in the order of ``Batch.blocks``.
        device: where the batches go.
        seed: of the choice among several views.
        rank: of the side layers that read block outputs, which, all but y_0, may then come as factors; 0: as values.
        residency: where block outputs are kept from batch to batch.
        samples: numbers of those that will be asked for, where they are kept in memory; by default all.
    """

    def __init__(
        self,
        cache: ActivationCache,
        points: Sequence[str],
        device: torch.device,
        *,
        seed: int = 0,
        rank: int = 0,
        residency: Residency = DISK,
        samples: NDArray[np.int64] | None = None,
    ) -> None:
        self.cache, self.device = cache, device
        self._rank, self._decoded = rank, residency.decoded
        self._on_disk = residency.where == "disk"
        self._roof: Roof | None = None
        views = cache.manifest.views
        self._starts = view_starts(len(cache.ids) // views, views=views, seed=seed)
        self._watch = Stopwatch(device)
        disk = BlockReader(cache, points, direct=residency.direct)
        stored = cache.manifest.points
        self._encoding = cache.encoding().select([stored.index(point) for point in points]).to(device)
        self._reader: Reader = disk
        if not self._on_disk:
            rows = rows_of_samples(cache.samples if samples is None else samples, views=views)
            self._reader = keep(disk, rows, self._encoding, device, residency, chosen=len(points))
        precision = cache.precision
        self._dtype = precision.dtype if self._decoded else precision.stored_dtype
        self._shape = (len(disk.positions), cache.layout.tokens, cache.layout.columns)
        if self._decoded:
            self._shape = (len(points), *cache.manifest.shape[1:])
        self._buffers = torch.empty(0)
        moves = device.type != self._reader.device.type
        self._stream = torch.cuda.Stream(device) if moves else None
        self._ahead = self._reader.waits or moves
        self._sent: list[torch.cuda.Event | None] = [None] * (SLOTS if self._ahead else 1)

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request: one view of each of its samples."""
        longest = max((len(request.samples) for request in requests), default=0)
        if self._buffers.ndim == 1 or self._buffers.shape[2] < longest:
            with torch.inference_mode(False):  # an evaluation may ask first, or for more, and training reads them then
                planes, tokens, columns = self._shape
                shape = (len(self._sent), planes, longest, tokens, columns)
                self._buffers = allocate(shape, self._dtype, self._reader.device, pin=self._stream is not None)
        for filled in self._watch.waiting("read", self._filled(requests)):
            self._watch.add("reading", filled.seconds)
            self._watch.add("gigabytes", filled.nbytes / 1e9)
            if filled.sent is not None:
                with self._watch.computing("copy"):
                    self._take(filled.blocks, filled.sent)
            with self._watch.computing("decode"):
                blocks = self._values(filled.blocks)
            labels = torch.from_numpy(self.cache.labels[filled.rows]).to(self.device)
            yield Batch(blocks, labels, [self.cache.ids[row] for row in filled.rows])

    def spent(self) -> dict[str, float]:
        """Say what the loop waited for, and what was read (``losa_cache.train.account``)."""
        return self._watch.take()

    def roof(self) -> Roof:
        """Measure, once, what its reads could reach."""
        if self._roof is None:
            shard = self.cache.shard_path(0)
            disk = disk_speed(shard) if self._on_disk and isinstance(shard, Path) else None
            self._roof = Roof(memory_speed(), disk)
        return self._roof

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _filled(self, requests: Sequence[Request]) -> Iterator[Filled]:
        numbered = [(at % len(self._sent), self._rows(request)) for at, request in enumerate(requests)]
        if self._ahead:
            yield from work_ahead(self._fill, numbered)
            return
        for this, following in zip_longest(numbered, numbered[1:]):
            if following is not None:
                self._reader.expect(following[1])
            yield self._fill(this)

    def _rows(self, request: Request) -> NDArray[np.int64]:
        return rows_of(request, self._starts, views=self.cache.manifest.views)

    def _fill(self, slot_rows: tuple[int, NDArray[np.int64]]) -> Filled:
        slot, rows = slot_rows
        if (sent := self._sent[slot]) is not None:
            sent.synchronize()  # the device must have taken what the slot held
        buffers = [buffer[: len(rows)] for buffer in self._buffers[slot]]
        started = perf_counter()
        self._reader.read(rows, buffers)
        seconds = perf_counter() - started
        nbytes = sum(buffer.nbytes for buffer in buffers)
        if self._stream is None:
            return Filled(rows, buffers, None, nbytes, seconds)
        with torch.cuda.stream(self._stream):
            there = [buffer.to(self.device, non_blocking=True) for buffer in buffers]
            self._sent[slot] = event = self._stream.record_event()
        return Filled(rows, there, event, nbytes, seconds)

    def _take(self, blocks: Sequence[Tensor], sent: torch.cuda.Event) -> None:
        """Have the stream that trains wait for the copies, and own their memory."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(sent)
        for block in blocks:
            block.record_stream(stream)

    def _values(self, stored: list[Tensor]) -> list[Block]:
        """Decode, or hand on codes: y_0, the last, is a tensor in any case."""
        if self._decoded:
            return list(stored)
        factors = self._encoding.factors(stored, rank=self._rank) if self._rank else None
        if factors is None:
            return list(self._encoding.decode(stored))
        return [*map(self._block, factors[:-1]), self._block(factors[-1]).dense()]

    def _block(self, factors: Codes | Columns) -> Scaled | Product:
        dtype = self._encoding.precision.dtype
        if isinstance(factors, Codes):
            return Scaled(factors.codes, factors.tokens, factors.channels, dtype=dtype)
        return Product(factors.left, factors.right, factors.mean, factors.ends, dtype=dtype)
