"""Read a cache into memory once, before a run; reads, copies and decoding overlap."""

import logging
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.precision import Encoding
from losa_cache.cache.reader import BlockReader
from losa_cache.machine.device import default_workers, on_stream, side_stream
from losa_cache.machine.memory import allocate
from losa_cache.machine.prefetch import work_ahead
from losa_cache.machine.sizes import readable_bytes
from losa_cache.train.in_memory import MemoryReader

log = logging.getLogger(__name__)

LOAD_BYTES, LOAD_ROWS = 2**24, 32  # read at a time into the host's memory, at least
STAGES = 3  # one is read into, one waits, one is copied to the device
STAGE_BYTES = 2**27
WORTH_SAYING = 10**8  # bytes


def preload(
    reader: BlockReader,
    rows: NDArray[np.int64],
    encoding: Encoding,
    device: torch.device,
    *,
    where: str,
    decoded: bool,
    points: int,
) -> MemoryReader:
    """Read rows once, in the order of the disk, and keep them; log the bytes and seconds.

    Args:
        reader: reader of the cache.
        rows: rows to keep, ascending.
        encoding: encoding of the reader's points, on ``device``.
        device: the training device.
        where: where they are kept: ``device`` or ``memory``. For a GPU that memory is page-locked, so that copies are
            asynchronous.
        decoded: whether values are kept in place of codes.
        points: number of points, if they are kept decoded.
    """
    cache, started = reader.cache, perf_counter()
    place = device if where == "device" else reader.device
    dtype = encoding.precision.stored_dtype
    shape = (len(reader.positions), len(rows), cache.layout.tokens, cache.layout.columns)
    if decoded:
        dtype = encoding.precision.dtype
        shape = (points, len(rows), *cache.manifest.shape[1:])
    kept = [allocate(shape[1:], dtype, place, pin=place.type != device.type) for _ in range(shape[0])]
    if decoded or place != reader.device:
        _through_stages(reader, rows, encoding if decoded else None, device, kept)
    else:
        size = max(LOAD_ROWS, LOAD_BYTES // (len(reader.positions) * cache.layout.block_bytes))
        for at in range(0, len(rows), size):
            reader.expect(rows[at + size : at + 2 * size])
            cut = rows[at : at + size]
            reader.read(cut, [block[at : at + len(cut)] for block in kept])
    nbytes, seconds = len(rows) * len(reader.positions) * cache.layout.block_bytes, perf_counter() - started
    if nbytes >= WORTH_SAYING:
        speed = nbytes / 1e9 / seconds
        log.info("%s were loaded in %.1f s (%.1f GB/s).", readable_bytes(nbytes), seconds, speed)
    return MemoryReader(kept, rows)


def _through_stages(
    reader: BlockReader,
    rows: NDArray[np.int64],
    encoding: Encoding | None,
    device: torch.device,
    kept: Sequence[Tensor],
) -> None:
    """Read into page-locked buffers in turn, while the GPU copies and decodes the content of the previous one."""
    layout, threads = reader.cache.layout, default_workers()
    planes, cuda = len(reader.positions), device.type == "cuda"
    size = STAGE_BYTES // (planes * layout.block_bytes * threads) * threads  # all threads end a stage together
    size = max(1, min(len(rows), max(size, threads)))
    shape = (STAGES if cuda else 1, planes, size, layout.tokens, layout.columns)
    stages = allocate(shape, reader.cache.precision.stored_dtype, reader.device, pin=cuda)
    stream = side_stream(device)
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # which may still use what ``kept`` was before
    sent: list[torch.cuda.Event | None] = [None] * len(stages)

    def read(at: int) -> list[Tensor]:
        stage = at // size % len(stages)
        if (event := sent[stage]) is not None:
            event.synchronize()
        cut = rows[at : at + size]
        reader.expect(rows[at + size : at + 2 * size])
        targets = [plane[: len(cut)] for plane in stages[stage]]
        reader.read(cut, targets)
        return targets

    starts = range(0, len(rows), size)
    for at, targets in zip(starts, work_ahead(read, starts) if cuda else map(read, starts), strict=True):
        with on_stream(stream):
            blocks = targets
            if encoding is not None:
                blocks = encoding.decode([target.to(device, non_blocking=True) for target in targets])
            for block, values in zip(kept, blocks, strict=True):
                block[at : at + len(values)].copy_(values, non_blocking=True)
            if stream is not None:
                sent[at // size % len(stages)] = stream.record_event()
    if stream is not None:
        stream.synchronize()
