"""Lossless compression of chunks by Blosc's bitshuffle and LZ4, if it pays on a calibration sample.

The exponents of a block output take few values. Bitshuffle puts equal bits of all values side by side, and LZ4 finds
the repetitions. Measured on a ViT-S/14, one thread: bfloat16 shrinks to 0.75 and is decompressed at 3.3 GB/s (zstd:
0.74 at 1.8), int8 to 1.00.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

LEVEL = 5
OVERHEAD_BYTES = blosc.MAX_OVERHEAD
HEADER = Struct("<4xI4xI")  # of a Blosc 1 buffer: plain bytes and stored bytes
WORTH_RATIO = 0.95
WORTH_BYTES = 4 * 1024**3  # smaller caches lie in memory, where decompressing doubles the time of a read


def worth(chunks: Sequence[NDArray[Any]]) -> float | None:
    """Compress a sample of chunks and give the ratio of stored to plain bytes, or ``None`` if that saves less than 5 %.

    The ratio alone decides, not the time, so that the same samples give the same bytes on every machine. LZ4 is fast.
    """
    plain = sum(chunk.nbytes for chunk in chunks)
    ratio = sum(len(compress(chunk, chunk.itemsize)) for chunk in chunks) / plain
    return ratio if ratio <= WORTH_RATIO else None


def compress(chunk: NDArray[Any], itemsize: int) -> bytes:
    """Compress the bytes of elements of ``itemsize`` bytes."""
    elements = chunk.reshape(-1).view(f"V{itemsize}")
    return bytes(blosc.compress(elements, b"lz4", LEVEL, blosc.BITSHUFFLE))


def decompress(data: bytes | NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Fill ``out``.

    Raises:
        ValueError: if ``data`` is not exactly that many bytes, compressed.
    """
    if len(data) < HEADER.size or HEADER.unpack(bytes(data[: HEADER.size])) != (out.nbytes, len(data)):
        raise ValueError(f"its header does not say that {len(data)} bytes hold {out.nbytes}")
    try:
        blosc.decompress(data, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
