"""Batches from a cache: the next one is read while this one trains."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.bandwidth import disk_bandwidth, memory_bandwidth
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.store import ActivationCache
from losa_cache.factors import Codes
from losa_cache.machine.device import default_workers
from losa_cache.machine.memory import available_memory
from losa_cache.sidenet.operand import Block, Gathered, dense
from losa_cache.sidenet.pooled import Pooling
from losa_cache.train.batch import Batch, Request
from losa_cache.train.bottleneck import Bandwidth
from losa_cache.train.fixed_codes import FixedCodes
from losa_cache.train.in_memory import MemoryReader, Reader
from losa_cache.train.loaders import DeviceLoader, HostLoader, Loader, joined, longest
from losa_cache.train.normed_rows import NormedRows, pooled_bytes
from losa_cache.train.placement import Placement
from losa_cache.train.preload import preload
from losa_cache.train.residency import DISK, Residency, Sizes, choose_residency, rows_on_device
from losa_cache.train.sampler import rows_of, rows_of_samples, view_starts
from losa_cache.train.stopwatch import Stopwatch
from losa_cache.train.transfer import TransferLoader

log = logging.getLogger(__name__)


def open_cached(
    cache: ActivationCache,
    points: Sequence[str],
    placement: Placement,
    *,
    samples: NDArray[np.int64],
    passes: int,
    seed: int = 0,
    rank: int = 0,
    batch_size: int = 0,
    targets: NDArray[Any] | None = None,
    pooling: Pooling | None = None,
) -> "CachedSource":
    """Choose a residency, log the reason, and open the source.

    Args:
        placement: where the batches go, and where activations are to be kept.
        samples: numbers of all samples that will be requested.
        passes: how often each will be requested.
        batch_size: samples of the largest batch that will be requested, if that is known.
        cache, points, seed, rank, targets, pooling: as of :class:`CachedSource`.

    Raises:
        UserError: for a residency that is unknown or does not fit.
    """
    device = placement.device
    precision, (_, tokens, width) = cache.precision, cache.manifest.shape
    beside = pooled_bytes(pooling, tokens, width, precision.dtype)
    count = len(samples) * cache.manifest.views
    planes = precision.stored_layers([cache.manifest.points.index(point) for point in points])
    values, folded = precision.dtype == precision.stored_dtype, rank > 0 and precision.folds
    sample = len(planes) * cache.layout.block_bytes
    decoded = batch_size * tokens * width * precision.dtype.itemsize  # of a point
    sizes = Sizes(
        stored=count * sample,
        decoded=None if values or folded else count * len(points) * tokens * width * precision.dtype.itemsize,
        device=None if device.type == "cpu" else available_memory(device),
        memory=available_memory(torch.device("cpu")),
        passes=passes,
        remote=cache.remote,
        batch=batch_size * sample,
        plane=batch_size * cache.layout.block_bytes,
        made=0 if values else 2 * decoded * (1 if folded else len(points)),
        normed=0 if pooling is None else 2 * decoded * len(points),
        pooled=count * len(points) * beside if values or not folded else 0,
    )
    chosen = choose_residency(placement.residency, sizes)
    log.info(chosen.reason)
    return CachedSource(
        cache,
        points,
        device,
        seed=seed,
        rank=rank,
        residency=chosen,
        samples=samples,
        targets=targets,
        pooling=pooling,
    )


class CachedSource:
    """Batches of a cache's block outputs, labels and ids.

    Args:
        cache: to read.
        points: points to read, in the order of ``Batch.blocks``.
        device: device of the batches.
        seed: seed of the choice among several views.
        rank: inner width of the side layers. With it, block outputs other than y_0 may come as factors, or as rows of a
            larger tensor on the device. 0: block outputs come as values.
        residency: where block outputs are kept between batches.
        samples: numbers of the samples that will be requested, and so are kept in memory; by default all.
        targets: targets of all samples, ``(samples, ...)``; by default the cache's labels.
        pooling: of a model that layer-norms all blocks first. Blocks that are kept as values in the memory of
            ``device`` are normed once, there, and come as :class:`losa_cache.sidenet.operand.Normed`, unless they have
            few tokens (``losa_cache.train.normed_rows``).
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
        targets: NDArray[Any] | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self.cache, self.device = cache, device
        self._rank, self._on_disk = rank, residency.where == "disk"
        self._plain = residency.decoded or cache.precision.stored_dtype == cache.precision.dtype
        self._bandwidth: Bandwidth | None = None
        views = cache.manifest.views
        self._starts = view_starts(len(cache.ids) // views, views=views, seed=seed)
        self._labels = torch.from_numpy(cache.labels[::views] if targets is None else targets).to(device)
        self._watch = Stopwatch(device)
        stored = cache.manifest.points
        self._encoding = cache.encoding().select([stored.index(point) for point in points]).to(device)
        self._fixed_codes: FixedCodes | None = None
        if device.type != "cpu":
            self._fixed_codes = FixedCodes(len(points), *cache.manifest.shape[1:], cache.precision.dtype, device)
        self._normed: NormedRows | None = None
        rows = rows_of_samples(cache.samples if samples is None else samples, views=views)
        self._loader = self._open(points, residency, rows, pooling)

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request: one view of each of its samples."""
        rows = [rows_of(request, self._starts, views=self.cache.manifest.views) for request in requests]
        numbers = torch.from_numpy(joined(rows)).to(self.device)
        samples = numbers.div_(self.cache.manifest.views, rounding_mode="floor").split([len(batch) for batch in rows])
        filled_batches = self._watch.waiting("read", self._loader.batches(rows))
        largest = longest(rows)
        for filled, wanted in zip(filled_batches, samples, strict=True):
            if filled.nbytes:
                self._watch.add("reading", filled.seconds)
                self._watch.add("gigabytes", filled.nbytes / 1e9)
            with self._watch.computing("decode"):
                if self._normed is not None:
                    blocks, fixed = self._normed.batch(filled, largest), True
                else:
                    blocks, fixed = self._values(filled.blocks, largest)
            yield Batch(blocks, self._labels[wanted], list(self.cache.ids.take(filled.rows)), fixed)

    def spent(self) -> dict[str, float]:
        """Give the seconds that the loop waited, and what was read (``losa_cache.train.bottleneck``)."""
        return self._watch.take()

    def bandwidth(self) -> Bandwidth:
        """Measure once the largest possible speed of its reads."""
        if self._bandwidth is None:
            shard = self.cache.shard_path(0)
            disk = disk_bandwidth(shard.on_disk) if self._on_disk and shard.on_disk else None
            self._bandwidth = Bandwidth(memory_bandwidth(), disk)
        return self._bandwidth

    def close(self) -> None:
        """Stop reading."""
        self._loader.close()

    def _open(
        self, points: Sequence[str], residency: Residency, rows: NDArray[np.int64], pooling: Pooling | None
    ) -> Loader:
        """Load what is kept in memory, and choose how batches are made from it."""
        cache, device = self.cache, self.device
        threads = None if self._on_disk or cache.remote else default_workers()  # nothing else is done while it loads
        disk = BlockReader(cache, points, threads=threads, direct=residency.direct)
        shape, dtype = (len(disk.positions), cache.layout.tokens, cache.layout.columns), cache.precision.stored_dtype
        if residency.decoded:
            shape, dtype = (len(points), *cache.manifest.shape[1:]), cache.precision.dtype
        load = partial(
            preload, disk, encoding=self._encoding, device=device, decoded=residency.decoded, points=len(points)
        )
        reader: Reader = disk
        hot: MemoryReader | None = None
        if residency.where == "device":
            hot = load(rows, where="device")
        elif residency.where == "memory":
            reader = load(rows, where="memory")
        elif residency.where == "split":
            on_device = rows_on_device(len(rows), residency.share)
            hot, reader = load(rows[on_device], where="device"), load(rows[~on_device], where="memory")
        if not self._on_disk:
            disk.close()
        kept = [memory for memory in (hot, reader) if isinstance(memory, MemoryReader)]
        if not pooled_bytes(pooling, *cache.manifest.shape[1:], cache.precision.dtype):
            pooling = None  # blocks are normed in each step
        whole_here = len(kept) == 1 and kept[0].device.type == device.type  # not split between two memories
        if pooling is not None and self._plain and whole_here:
            self._normed = NormedRows(kept[0], pooling)
        if hot is not None and reader is disk:
            in_place = self._plain and (self._rank > 0 or self._normed is not None)
            return DeviceLoader(hot, self._watch, in_place=in_place)
        if hot is not None or reader.device.type != device.type:
            return TransferLoader(reader, shape, dtype, device, self._watch, hot=hot)
        return HostLoader(reader, shape, dtype)

    def _values(self, filled: Sequence[Tensor | Gathered], rows: int) -> tuple[list[Block], bool]:
        """Decode, or pass codes on; y_0, the last, is always decoded. Say whether all blocks are at fixed addresses.

        ``rows`` is the size of the largest batch to come.
        """
        if self._plain:
            return list(filled), True
        stored = dense(filled)
        factors = self._encoding.factors(stored, rank=self._rank) if self._rank else None
        if factors is None:
            return list(self._encoding.decode(stored)), False
        *others, start = factors
        if self._fixed_codes is not None and isinstance(start, Codes):
            return self._fixed_codes.write([block for block in factors if isinstance(block, Codes)], rows), True
        return [*others, start.dense()], False
