"""Speeds of this machine, measured: the disk that a cache would lie on, the backbone, decoding, decompression."""

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from losa_cache.cache.compression import compress, decompress
from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import EncodedBatch, Encoding
from losa_cache.cache.reader import READERS
from losa_cache.calibrate import images_at_once
from losa_cache.data.decode import Decoder, View
from losa_cache.errors import UserError
from losa_cache.inputs import Inputs

PROBE_BYTES = 256 * 1024 * 1024
FREE_SHARE = 10  # the probe takes at most a tenth of the free space
ROUNDS = 3


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes a second: written with fsync, read cold (as far as the system lets go of its pages), read again."""

    write: float
    read: float
    reread: float


def disk_speed(folder: Path, *, piece: int, free: int) -> DiskSpeed:
    """Write a file, which is removed again, and read it back in random order.

    Args:
        folder: on that disk.
        piece: bytes of one read, as of one sample.
        free: bytes on the disk.

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
    """Images a second that are decoded and transformed, plain."""
    count = min(len(inputs.samples), images_at_once(inputs))
    decoder = Decoder(inputs.samples, inputs.backbone.input, workers=workers)
    try:
        plan: list[list[View]] = [[(index, None) for index in range(count)]]
        return count / _median_seconds(lambda: list(decoder.batches(plan)))
    finally:
        decoder.close()


def forward_speed(inputs: Inputs, encoding: Encoding, batch: int) -> float:
    """Images a second through the backbone, encoded."""
    backbone = inputs.backbone
    target = backbone.device if backbone.streamed is None else torch.device("cpu")
    encoding = encoding.to(backbone.device)
    shape = inputs.manifest.shape
    pixels = torch.zeros(batch, *backbone.input.shape, dtype=torch.uint8, device=backbone.device)

    def run() -> None:
        encoded = EncodedBatch.empty(encoding, batch, shape, target)
        backbone.run(pixels, inputs.manifest.points, encoded.put, compute=inputs.compute)
        encoded.extremes.cpu()  # waits for the device

    return batch / _median_seconds(run)


def unpack_speed(encoding: Encoding, blocks: Sequence[Tensor], layout: Layout) -> float:
    """Rows a second that are decompressed, by two threads, and decoded on the device."""
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
