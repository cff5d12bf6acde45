"""Measure the speeds of this machine: the disk for the cache, the backbone, decoding, decompression."""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from losa_cache.backbone import Backbone
from losa_cache.cache.compression import compress, decompress
from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import EncodedBatch, Encoding
from losa_cache.cache.reader import READERS
from losa_cache.calibrate import images_at_once
from losa_cache.data.decode import Decoder, View
from losa_cache.errors import UserError
from losa_cache.extract.forward import Fetch, choose_forward
from losa_cache.extract.meter import Meter
from losa_cache.extract.on_cuda import WORTH_BATCHES, CudaForward
from losa_cache.extract.pipeline import WRITE_BEHIND
from losa_cache.inputs import Inputs

PROBE_BYTES = 256 * 1024 * 1024
FREE_SHARE = 10  # the probe takes at most a tenth of the free space
ROUNDS = 3


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes a second: written with fsync, read cold (as far as the system drops its pages), and read again."""

    write: float
    read: float
    reread: float


def disk_speed(folder: Path, *, piece: int, free: int) -> DiskSpeed:
    """Write a temporary file, and read it back in random order.

    Args:
        folder: folder on that disk.
        piece: bytes of one read, which is one sample.
        free: free bytes on the disk.

    Raises:
        UserError: if nothing can be written there.
    """
    piece = min(max(piece, 64 * 1024), PROBE_BYTES // 8)
    pieces = max(1, min(PROBE_BYTES, free // FREE_SHARE) // piece)
    content = np.random.default_rng(0).bytes(piece)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            started = perf_counter()
            for _ in range(pieces):
                file.write(content)
            os.fsync(file.fileno())
            write = pieces * piece / (perf_counter() - started)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cold, warm = (_read_all(file.fileno(), piece, pieces) for _ in range(2))
    except OSError as error:
        raise UserError(
            f"nothing can be written to {str(folder)!r} ({error.strerror}): choose another --out."
        ) from error
    return DiskSpeed(write, cold, warm)


def _read_all(handle: int, piece: int, pieces: int) -> float:
    order = np.random.default_rng(0).permutation(pieces)
    buffers = [bytearray(piece) for _ in range(READERS)]

    def read(reader: int) -> None:
        for at in order[reader::READERS]:
            os.preadv(handle, [buffers[reader]], int(at) * piece)

    started = perf_counter()
    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(read, range(READERS)))
    return pieces * piece / (perf_counter() - started)


def decode_speed(inputs: Inputs, *, workers: int) -> float:
    """Measure how many plain images are decoded and transformed in a second."""
    count = min(len(inputs.samples), images_at_once(inputs))
    decoder = Decoder(
        inputs.samples, inputs.backbone.input, workers=workers, turn=inputs.manifest.upright, on=inputs.decodes_on
    )
    try:
        plan: list[list[View]] = [[(index, None) for index in range(count)]]
        return count / _median_seconds(lambda: list(decoder.batches(plan)))
    finally:
        decoder.close()


def forward_speed(inputs: Inputs, encoding: Encoding, batch: int) -> float:
    """Measure how many images a second the backbone processes, including encoding, as in an extraction."""
    backbone = inputs.backbone
    forward = choose_forward(
        backbone,
        inputs.manifest.points,
        encoding.to(backbone.device),
        compute=inputs.compute,
        batch_size=batch,
        full_batches=ROUNDS + 1,
        meter=Meter(),
    )
    pixels = torch.zeros(batch, *backbone.input.shape, dtype=torch.uint8)
    return batch / _median_seconds(lambda: [fetch() for fetch in forward.run([pixels])])


@dataclass(frozen=True)
class DeviceSpeed:
    """Images a second on a CUDA device; the two ways are measured in turn.

    Attributes:
        forward: a bare forward pass: pixels are there, nothing is encoded or copied.
        extraction: pixels are uploaded, block outputs encoded and copied to pinned host memory.
        way: of both, ``"graph"``, or ``"eager: "`` and why.
    """

    forward: float
    extraction: float
    way: str


def device_speed(
    backbone: Backbone,
    points: Sequence[str],
    encoding: Encoding,
    pixels: Tensor,
    *,
    compute: torch.dtype,
    batches: int = 20,
    graph: bool = True,
    aside: bool | None = None,
) -> DeviceSpeed:
    """Measure what an extraction does on a CUDA device, without decoding and without the disk.

    Args:
        backbone: on the device, not streamed.
        points: whose values are encoded.
        encoding: of them.
        pixels: of a batch, uint8 ``(batch, *input.shape)``, in pinned host memory.
        compute: dtype of the matrix products.
        batches: of a measurement, of which the median of three is taken.
        graph: as an extraction of many batches does it; else eagerly.
        aside: encode on a stream of its own; by default as an extraction does.
    """
    forward = CudaForward(
        backbone,
        points,
        encoding.to(backbone.device),
        compute=compute,
        batch_size=len(pixels),
        full_batches=WORTH_BATCHES if graph else 0,
        meter=Meter(),
        aside=aside,
    )

    def bare() -> None:
        for _ in range(batches):
            forward.bare()
        torch.cuda.synchronize(backbone.device)

    def extraction() -> None:
        behind: deque[Fetch] = deque()
        for _ in range(batches):
            behind += forward.run([pixels])
            if len(behind) > WRITE_BEHIND:
                behind.popleft()()
        while behind:
            behind.popleft()()

    seconds: dict[Callable[[], None], list[float]] = {bare: [], extraction: []}
    for _ in range(ROUNDS + 1):
        for work, taken in seconds.items():
            started = perf_counter()
            work()
            taken.append(perf_counter() - started)
    speeds = [batches * len(pixels) / median(taken[1:]) for taken in seconds.values()]  # the first round warms up
    way = "graph" if forward.why_eager is None else f"eager: {forward.why_eager}"
    return DeviceSpeed(speeds[0], speeds[1], way)


def unpack_speed(encoding: Encoding, blocks: Sequence[Tensor], layout: Layout) -> float:
    """Measure how many rows a second are decompressed by two threads and decoded on the device."""
    stored = EncodedBatch.of(encoding, blocks).stored
    seconds = _median_seconds(lambda: _decoded(encoding, stored)) / len(stored)
    if layout.compressed:
        sample = stored[0].cpu().view(torch.uint8).numpy().reshape(layout.sample_chunks, -1)
        chunks = [compress(chunk, layout.itemsize) for chunk in sample]
        seconds += _median_seconds(lambda: _decompressed(chunks, layout.chunk_bytes)) / READERS
    return 1 / seconds


def _decompressed(chunks: Sequence[bytes], size: int) -> None:
    out = np.empty(size, dtype=np.uint8)
    for chunk in chunks:
        decompress(chunk, out)


def _decoded(encoding: Encoding, stored: Tensor) -> None:
    encoding.decode(stored.unbind(1))
    if stored.device.type == "cuda":
        torch.cuda.synchronize(stored.device)


def _median_seconds(work: Callable[[], object]) -> float:
    """The first time warms up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return max(median(seconds[1:]), 1e-9)
