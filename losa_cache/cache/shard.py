"""The bytes of one shard: Zarr v3's ``sharding_indexed``, uncompressed, crc32c on every chunk and on the index.

The writer appends samples as they come and holds none of them, so its memory is one batch however large the shard.
"""

import os
import weakref
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.files import publish
from losa_cache.cache.layout import CHECKSUM_BYTES, Layout

MISSING = np.uint64(2**64 - 1)


class DamagedShardError(Exception):
    """A shard that is not what its checksums say."""


class ShardWriter:
    """Write one shard's samples in order, to a temporary name, and publish it whole."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.partial = path.with_name(path.name + ".partial")
        self.index = np.full((layout.shard_samples, layout.sample_chunks, 2), MISSING, dtype="<u8")
        self.checksum = 0
        self.size = 0
        self._file = open(self.partial, "wb", buffering=0)

    def append(self, row: int, sample: NDArray[Any]) -> None:
        """Append one sample.

        Args:
            row: its place in the shard, 0 ... shard_samples - 1.
            sample: its values, C-contiguous, ``layers * tokens * width`` of them.
        """
        chunks = sample.reshape(-1).view(np.uint8).reshape(self.layout.sample_chunks, self.layout.chunk_bytes)
        stored = np.empty((len(chunks), self.layout.chunk_bytes + CHECKSUM_BYTES), dtype=np.uint8)
        stored[:, :-CHECKSUM_BYTES] = chunks
        for chunk, target in zip(chunks, stored, strict=True):
            target[-CHECKSUM_BYTES:] = np.frombuffer(_checksum(chunk), dtype=np.uint8)
        self.index[row, :, 0] = self.size + np.arange(len(stored), dtype=np.uint64) * np.uint64(stored.shape[1])
        self.index[row, :, 1] = stored.shape[1]
        self._write(stored)

    def commit(self) -> None:
        """Write the index, make the bytes durable and give the file its name."""
        index = self.index.tobytes()
        self._write(np.frombuffer(index + _checksum(index), dtype=np.uint8))
        os.fsync(self._file.fileno())
        self._file.close()
        publish(self.partial, self.path)

    def close(self) -> None:
        """Let go of an unfinished shard; its temporary file is removed by the next run."""
        self._file.close()

    def _write(self, data: NDArray[np.uint8]) -> None:
        self.checksum = google_crc32c.extend(self.checksum, data)
        self.size += data.nbytes
        view = data.reshape(-1).data
        while view:
            view = view[self._file.write(view) :]


class ShardReader:
    """Read samples of one shard at the offsets that its index gives. Safe to share between threads."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)  # not before the last thread has let go of it
        size = os.fstat(self._handle).st_size
        raw = os.pread(self._handle, layout.index_bytes, max(0, size - layout.index_bytes))
        if len(raw) < layout.index_bytes or _checksum(raw[:-CHECKSUM_BYTES]) != raw[-CHECKSUM_BYTES:]:
            raise DamagedShardError(f"the index of shard {path.name} is damaged")
        entries = np.frombuffer(raw[:-CHECKSUM_BYTES], dtype="<u8").reshape(-1, layout.sample_chunks, 2)
        self.index: list[list[list[int]]] = entries.tolist()
        self._verified = np.zeros(entries.shape[:2], dtype=bool)

    def read(self, row: int, targets: dict[int, NDArray[np.uint8]]) -> None:
        """Read layers of one sample into place, checking each chunk the first time it is read.

        Args:
            row: place of the sample in the shard.
            targets: position of the layer in the cache to the bytes to fill, each ``block_bytes`` long.

        Raises:
            DamagedShardError: for a chunk that is missing, short or fails its checksum.
        """
        per_chunk = self.layout.chunk_layers
        for chunk in sorted({layer // per_chunk for layer in targets}):
            offset, length = self.index[row][chunk]
            if length != self.layout.chunk_bytes + CHECKSUM_BYTES:
                raise DamagedShardError(f"chunk {chunk} is missing from shard {self.path.name}")
            parts = [
                targets[layer] if layer in targets else np.empty(self.layout.block_bytes, dtype=np.uint8)
                for layer in range(chunk * per_chunk, (chunk + 1) * per_chunk)
            ]
            self._read_chunk(row, chunk, offset, parts)

    def _read_chunk(self, row: int, chunk: int, offset: int, parts: list[NDArray[np.uint8]]) -> None:
        stored = bytearray(CHECKSUM_BYTES)
        if (
            os.preadv(self._handle, [*(part.data for part in parts), stored], offset)
            != self.layout.chunk_bytes + CHECKSUM_BYTES
        ):
            raise DamagedShardError(f"chunk {chunk} of shard {self.path.name} is cut short")
        if self._verified[row, chunk]:
            return
        checksum = 0
        for part in parts:
            checksum = google_crc32c.extend(checksum, part)
        if checksum.to_bytes(CHECKSUM_BYTES, "little") != stored:
            raise DamagedShardError(f"chunk {chunk} of shard {self.path.name} fails its checksum")
        self._verified[row, chunk] = True


def _checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
