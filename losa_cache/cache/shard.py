"""The bytes of one shard: Zarr v3's ``sharding_indexed``, crc32c on every chunk and on the index.

The writer appends samples as they come and holds none of them, so its memory is one batch however large the shard.
"""

import hashlib
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.compression import compress, decompress
from losa_cache.cache.files import publish
from losa_cache.cache.layout import CHECKSUM_BYTES, Layout

MISSING = 2**64 - 1


class DamagedShardError(Exception):
    """A shard that is not what its checksums say."""


@dataclass(frozen=True)
class PackedSample:
    """A sample's chunks as they are stored.

    Attributes:
        data: one behind the other, each with its checksum.
        lengths: bytes of each.
    """

    data: NDArray[np.uint8]
    lengths: list[int]

    @property
    def checksums(self) -> bytes:
        """The checksums of all chunks."""
        ends = np.cumsum(self.lengths)[:, None]
        return self.data[ends - np.arange(CHECKSUM_BYTES, 0, -1)].tobytes()


def pack(sample: NDArray[Any], layout: Layout) -> PackedSample:
    """Cut a sample into chunks, compress them where the layout says so, add their checksums.

    Args:
        sample: its stored elements, C-contiguous, ``layers * tokens * columns`` of them.
        layout: of the store.
    """
    chunks = sample.reshape(-1).view(np.uint8).reshape(layout.sample_chunks, layout.chunk_bytes)
    if layout.compressed:
        compressed = [compress(chunk, layout.itemsize) for chunk in chunks]
        data = b"".join(part for chunk in compressed for part in (chunk, checksum(chunk)))
        return PackedSample(np.frombuffer(data, np.uint8), [len(chunk) + CHECKSUM_BYTES for chunk in compressed])
    stored = np.empty((len(chunks), layout.stored_chunk_bytes), dtype=np.uint8)
    stored[:, :-CHECKSUM_BYTES] = chunks
    for chunk, target in zip(chunks, stored, strict=True):
        target[-CHECKSUM_BYTES:] = np.frombuffer(checksum(chunk), dtype=np.uint8)
    return PackedSample(stored.reshape(-1), [stored.shape[1]] * len(stored))


class ShardWriter:
    """Write one shard's samples in order, to a temporary name, and publish it whole."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.partial = path.with_name(path.name + ".partial")
        self.index = np.full((layout.shard_samples, layout.sample_chunks, 2), MISSING, dtype="<u8")
        self.size = 0
        self._digest = hashlib.sha256()
        self._file = open(self.partial, "wb", buffering=0)

    def append(self, row: int, sample: PackedSample) -> None:
        """Append one sample.

        Args:
            row: its place in the shard, 0 ... shard_samples - 1.
            sample: its chunks.
        """
        ends = np.cumsum(sample.lengths, dtype=np.uint64)
        self.index[row, :, 1] = sample.lengths
        self.index[row, :, 0] = np.uint64(self.size) + ends - self.index[row, :, 1]
        self._digest.update(sample.checksums)
        self._write(sample.data)

    @property
    def digest(self) -> str:
        """Hash of the checksums of all chunks, in their order, and of the index: known once committed."""
        return self._digest.hexdigest()

    def commit(self) -> None:
        """Write the index, make the bytes durable and give the file its name."""
        index = self.index.tobytes()
        self._digest.update(index)
        self._write(np.frombuffer(index + checksum(index), dtype=np.uint8))
        os.fsync(self._file.fileno())
        self._file.close()
        publish(self.partial, self.path)

    def close(self) -> None:
        """Let go of an unfinished shard; its temporary file is removed by the next run."""
        self._file.close()

    def _write(self, data: NDArray[np.uint8]) -> None:
        self.size += data.nbytes
        view = data.data
        while view:
            view = view[self._file.write(view) :]


class ShardReader:
    """Read samples of one shard at the offsets that its index gives. Safe to share between threads."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)  # not before the last thread has let go of it
        self._size = os.fstat(self._handle).st_size
        raw = os.pread(self._handle, layout.index_bytes, max(0, self._size - layout.index_bytes))
        if len(raw) < layout.index_bytes or checksum(raw[:-CHECKSUM_BYTES]) != raw[-CHECKSUM_BYTES:]:
            raise DamagedShardError(f"the index of shard {path.name} is damaged")
        self.raw_index = raw[:-CHECKSUM_BYTES]
        entries = np.frombuffer(self.raw_index, dtype="<u8").reshape(-1, layout.sample_chunks, 2)
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
            parts = [
                targets[layer] if layer in targets else np.empty(self.layout.block_bytes, dtype=np.uint8)
                for layer in range(chunk * per_chunk, (chunk + 1) * per_chunk)
            ]
            if self.layout.compressed:
                self._decompress(row, chunk, parts)
            else:
                self._read_into(row, chunk, parts)

    def stored(self, row: int) -> PackedSample:
        """Read a sample's chunks as they are stored, having checked them.

        Raises:
            DamagedShardError: as :meth:`read`.
        """
        chunks = [self._checked(row, chunk) for chunk in range(self.layout.sample_chunks)]
        return PackedSample(np.concatenate(chunks), [len(chunk) for chunk in chunks])

    def absent(self, row: int) -> bool:
        """Whether no chunk of a sample is there, as of one that was skipped."""
        return all(entry == [MISSING, MISSING] for entry in self.index[row])

    def _read_into(self, row: int, chunk: int, parts: list[NDArray[np.uint8]]) -> None:
        offset, length = self._place(row, chunk)
        stored = bytearray(CHECKSUM_BYTES)
        if os.preadv(self._handle, [*(part.data for part in parts), stored], offset) != length:
            raise DamagedShardError(f"chunk {chunk} of shard {self.path.name} is cut short")
        if self._verified[row, chunk]:
            return
        found = 0
        for part in parts:
            found = google_crc32c.extend(found, part)
        self._require(found.to_bytes(CHECKSUM_BYTES, "little") == stored, row, chunk)

    def _decompress(self, row: int, chunk: int, parts: list[NDArray[np.uint8]]) -> None:
        whole = parts[0] if len(parts) == 1 else np.empty(self.layout.chunk_bytes, dtype=np.uint8)
        try:
            decompress(self._checked(row, chunk)[:-CHECKSUM_BYTES], whole)
        except ValueError as error:
            raise DamagedShardError(f"chunk {chunk} of shard {self.path.name} does not decompress ({error})") from error
        if len(parts) > 1:
            for part, piece in zip(parts, whole.reshape(len(parts), -1), strict=True):
                part[:] = piece

    def _checked(self, row: int, chunk: int) -> NDArray[np.uint8]:
        offset, length = self._place(row, chunk)
        stored = np.frombuffer(os.pread(self._handle, length, offset), dtype=np.uint8)
        if len(stored) != length:
            raise DamagedShardError(f"chunk {chunk} of shard {self.path.name} is cut short")
        if not self._verified[row, chunk]:
            found = checksum(stored[:-CHECKSUM_BYTES])
            self._require(found == stored[-CHECKSUM_BYTES:].tobytes(), row, chunk)
        return stored

    def _place(self, row: int, chunk: int) -> tuple[int, int]:
        offset, length = self.index[row][chunk]
        limit = self.layout.stored_chunk_bytes
        there = CHECKSUM_BYTES < length <= limit if self.layout.compressed else length == limit
        if not there or offset + length > self._size:
            raise DamagedShardError(f"chunk {chunk} is missing from shard {self.path.name}")
        return offset, length

    def _require(self, intact: bool, row: int, chunk: int) -> None:
        if not intact:
            raise DamagedShardError(f"chunk {chunk} of shard {self.path.name} fails its checksum")
        self._verified[row, chunk] = True


def checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    """Give the crc32c as it is stored behind a chunk: four bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
