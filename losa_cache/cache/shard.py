"""The bytes of one shard: Zarr v3's ``sharding_indexed``, crc32c on every chunk and on the index.

The writer appends samples as they come and keeps none of them, so it needs the memory of one batch, however large the
shard is.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.byte_source import ByteSource, CutShortError, Range
from losa_cache.cache.compression import compress, decompress
from losa_cache.cache.descriptors import too_many
from losa_cache.cache.layout import CHECKSUM_BYTES, Layout
from losa_cache.cache.places import MISSING, Places
from losa_cache.cache.runs import GAP_BYTES, cut_out, join
from losa_cache.files import own_partial, publish

PIECE_BYTES = 16 * 1024 * 1024  # of a shard, whose checksums are read together
DENSE_BYTES = 16 * 1024  # chunks that are smaller are read along with their checksums: a disk is no slower for it
FEW = 8  # rows of a shard: for no more the arithmetic of long reads is slower than a read each
_UNUSED = np.empty(CHECKSUM_BYTES, dtype=np.uint8)  # where checksums go that are known to be right


class DamagedShardError(Exception):
    """A shard differs from what its checksums say."""


@dataclass(frozen=True)
class PackedSample:
    """A sample's chunks as they are stored.

    Attributes:
        data: the chunks one after the other, each followed by its checksum.
        lengths: bytes of each chunk.
    """

    data: NDArray[np.uint8]
    lengths: list[int]

    @property
    def checksums(self) -> bytes:
        """The checksums of all chunks."""
        ends = np.cumsum(self.lengths)[:, None]
        return self.data[ends - np.arange(CHECKSUM_BYTES, 0, -1)].tobytes()


def pack(sample: NDArray[Any], layout: Layout) -> PackedSample:
    """Cut a sample into chunks, compress them if the layout says so, and add their checksums.

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
    """Write one shard's samples in order under a temporary name, then rename the shard as a whole.

    Attributes:
        index: bytes ``(shard_samples, sample_chunks, [offset, length])`` of the chunks written so far.
        size: bytes written.
        checksums: those of all chunks, in the order of the file.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.partial = own_partial(path)
        self.index = np.full((layout.shard_samples, layout.sample_chunks, 2), MISSING, dtype="<u8")
        self.size = 0
        self.checksums = bytearray()
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
        self.checksums += sample.checksums
        self._write(sample.data)

    @property
    def digest(self) -> str:
        """Hash the checksums of all chunks written so far, in their order, and that of the index."""
        return shard_digest(self.checksums, self.index.tobytes())

    def end(self) -> None:
        """Write the index and make the bytes durable, under the temporary name."""
        index = self.index.tobytes()
        self._write(np.frombuffer(index + checksum(index), dtype=np.uint8))
        os.fsync(self._file.fileno())
        self._file.close()

    def commit(self) -> None:
        """Write the index, make the bytes durable and give the file its name."""
        self.end()
        publish(self.partial, self.path)

    def discard(self) -> None:
        """Close an unfinished shard and remove its temporary file."""
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def _write(self, data: NDArray[np.uint8]) -> None:
        self.size += data.nbytes
        view = data.data
        while view:
            view = view[self._file.write(view) :]


class ShardReader:
    """Read samples of one shard at the offsets in its index. Threads may share it.

    The checksum behind a chunk says that the chunk is intact, not that it belongs here. After :meth:`bind`, every chunk
    is also compared with the checksum that its place must have.

    Args:
        source: its bytes.
        layout: of the store.

    Raises:
        DamagedShardError: if its index is.
    """

    def __init__(self, source: ByteSource, layout: Layout) -> None:
        self.source, self.layout, self._longest = source, layout, layout.stored_chunk_bytes
        raw = np.empty(layout.index_bytes, dtype=np.uint8)
        self._fetch(
            [(max(0, source.size - raw.nbytes), raw.nbytes, [raw])], f"the index of shard {source.name} is damaged"
        )
        if checksum(raw[:-CHECKSUM_BYTES]) != raw[-CHECKSUM_BYTES:].tobytes():
            raise DamagedShardError(f"the index of shard {source.name} is damaged")
        self._places = Places(raw[:-CHECKSUM_BYTES].view("<u8").reshape(-1, layout.sample_chunks, 2), layout)
        self._verified = np.zeros((layout.shard_samples, layout.sample_chunks), dtype=bool)
        self._expected: NDArray[np.uint32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self._places.nbytes + self._verified.nbytes + (0 if self._expected is None else self._expected.nbytes)

    def hashes_to(self, digest: str, checksums: bytes) -> bool:
        """Whether a receipt's digest agrees with these checksums, one for each chunk, and with this shard's index."""
        return (
            len(checksums) == CHECKSUM_BYTES * int(self._there().sum())
            and shard_digest(checksums, self._places.index.tobytes()) == digest
        )

    def bind(self, checksums: bytes) -> None:
        """Compare every chunk that is read from now on with these checksums (as :meth:`checksums` gives them)."""
        self._expected = np.zeros(self._verified.shape, dtype="<u4")
        self._expected[self._there()] = np.frombuffer(checksums, dtype="<u4")

    @property
    def present(self) -> list[int]:
        """Places of the samples that have chunks here."""
        places: list[int] = np.flatnonzero(self._there().any(axis=1)).tolist()
        return places

    def checksums(self, rows: slice = slice(None)) -> bytes:
        """Read the checksums behind the chunks of some rows; large chunks themselves are not read.

        Args:
            rows: places in the shard.

        Returns:
            four bytes a chunk, in the order of rows and layers, without those of chunks that are missing.

        Raises:
            DamagedShardError: if the index names bytes that are not there.
        """
        entries = self._places.index[rows][self._there()[rows]]
        offsets, lengths = entries[:, 0], entries[:, 1]
        whole = (lengths > CHECKSUM_BYTES) & (lengths <= self._longest)
        if not (whole.all() and (offsets <= self.source.size - np.minimum(lengths, self.source.size)).all()):
            raise DamagedShardError(f"the index of shard {self.source.name} names bytes that are not there")
        starts = (offsets + lengths - CHECKSUM_BYTES).astype(np.int64)
        found = np.empty((len(starts), CHECKSUM_BYTES), dtype=np.uint8)
        pieces = np.flatnonzero(np.diff(starts // PIECE_BYTES)) + 1
        for ends, own in zip(np.split(starts, pieces), np.split(found, pieces), strict=True):
            if len(ends):
                self._read_ends(ends, own)
        return found.tobytes()

    def _read_ends(self, starts: NDArray[np.int64], target: NDArray[np.uint8]) -> None:
        otherwise, first = f"shard {self.source.name} is cut short", int(starts.min())
        span = int(starts.max()) + CHECKSUM_BYTES - first
        if span <= DENSE_BYTES * len(starts):
            whole = np.empty(span, dtype=np.uint8)
            self._fetch([(first, span, [whole])], otherwise)
            target[:] = whole[starts[:, None] - first + np.arange(CHECKSUM_BYTES)]
            return
        self.source.expect([(start, CHECKSUM_BYTES) for start in starts.tolist()])
        places = zip(starts.tolist(), target, strict=True)
        self._fetch([(start, CHECKSUM_BYTES, [own]) for start, own in places], otherwise)

    def read(self, row: int, targets: dict[int, NDArray[np.uint8]]) -> None:
        """Read layers of one sample into place, checking each chunk the first time it is read.

        Args:
            row: place of the sample in the shard.
            targets: position of the layer in the cache to the bytes to fill, each ``block_bytes`` long.

        Raises:
            DamagedShardError: for a chunk that is missing, short or fails its checksum.
        """
        per_chunk = self.layout.chunk_layers
        chunks = sorted({layer // per_chunk for layer in targets})
        if per_chunk == 1:
            parts = [[targets[chunk]] for chunk in chunks]
        else:
            block_bytes = self.layout.block_bytes
            parts = [
                [
                    targets[layer] if layer in targets else np.empty(block_bytes, dtype=np.uint8)
                    for layer in range(chunk * per_chunk, (chunk + 1) * per_chunk)
                ]
                for chunk in chunks
            ]
        if self.layout.compressed:
            for chunk, stored, pieces in zip(chunks, self._checked(row, chunks), parts, strict=True):
                self._decompress(chunk, stored, pieces)
        else:
            self._read_into(row, chunks, parts)

    def read_rows(
        self, rows: NDArray[np.int64], targets: Mapping[int, NDArray[np.uint8]], entries: NDArray[np.int64]
    ) -> None:
        """Read layers of many samples into place, as :meth:`read` does; of short samples neighbours by one read.

        Args:
            rows: places of the samples in the shard, in any order.
            targets: position of the layer in the cache to bytes ``(entries, block_bytes)``.
            entries: which of these each sample fills.

        Raises:
            DamagedShardError: as :meth:`read`.
        """
        if not self.layout.short or len(rows) <= FEW:
            for row, entry in zip(rows.tolist(), entries.tolist(), strict=True):
                self.read(row, {layer: target[entry] for layer, target in targets.items()})
            return
        starts = self._starts(rows)
        order = np.argsort(starts, kind="stable")
        count = max(1, PIECE_BYTES // (self._longest + GAP_BYTES))
        for part in (order[at : at + count] for at in range(0, len(order), count)):
            stored = self._read_short(rows[part], starts[part])
            for layer, target in targets.items():
                at = layer * self.layout.block_bytes
                target[entries[part]] = stored[:, at : at + self.layout.block_bytes]

    def expect(self, rows: NDArray[np.int64], layers: Sequence[int]) -> None:
        """Announce that these layers of these samples will be read soon, if they were not read before."""
        chunks = sorted({layer // self.layout.chunk_layers for layer in layers})
        rows = rows[~self._verified[rows][:, chunks].all(axis=1)]
        first, last = chunks[0], chunks[-1]
        if not len(rows) or last - first >= len(chunks):  # gaps would be read, too
            return
        if self.layout.short:
            offsets, _ = self._places.of_samples(rows)
            known = offsets < self.source.size  # what is not there is an error when it is read
            if known.any():
                runs = join(np.sort(offsets[known].astype(np.int64)), self._longest)
                self.source.expect(list(zip(runs.begins.tolist(), (runs.ends - runs.begins).tolist(), strict=True)))
            return
        ranges = []
        for row in rows.tolist():
            (start, _), (end, length) = self._places.of(row, first), self._places.of(row, last)
            if MISSING not in (start, end) and start < end + length <= self.source.size:
                ranges.append((start, end + length - start))
        self.source.expect(ranges)

    def stored(self, row: int, chosen: Sequence[int] | None = None) -> PackedSample:
        """Read a sample's chunks as they are stored, having checked them.

        Args:
            row: place of the sample in the shard.
            chosen: numbers of the chunks; by default all.

        Raises:
            DamagedShardError: as :meth:`read`.
        """
        chunks = self._checked(row, range(self.layout.sample_chunks) if chosen is None else chosen)
        return PackedSample(np.concatenate(chunks), [len(chunk) for chunk in chunks])

    def absent(self, row: int) -> bool:
        """Whether a sample has no chunk, because it was skipped."""
        places = [self._places.of(row, chunk) for chunk in range(self.layout.sample_chunks)]
        return all(place == (MISSING, MISSING) for place in places)

    def _there(self) -> NDArray[np.bool_]:
        """Say of each chunk whether it is there."""
        return self._places.index[..., 0] != MISSING

    def _starts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the offsets of short samples."""
        offsets, lengths = self._places.of_samples(rows)
        room = np.uint64(max(0, self.source.size - self._longest))
        if not ((lengths == self._longest) & (offsets <= room)).all():
            raise DamagedShardError(f"chunk 0 is missing from shard {self.source.name}")
        return offsets.astype(np.int64)

    def _read_short(self, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read short samples at ascending offsets, and check those that were not read before."""
        runs = join(starts, self._longest)
        memory = np.empty(runs.nbytes, dtype=np.uint8)
        sizes = runs.ends - runs.begins
        parts = np.split(memory, np.cumsum(sizes)[:-1])
        ranges = [(*place, [part]) for *place, part in zip(runs.begins.tolist(), sizes.tolist(), parts, strict=True)]
        self._fetch(ranges, f"chunk 0 of shard {self.source.name} is cut short")
        stored = cut_out(memory, runs.at, self._longest)
        new = ~self._verified[rows, 0]
        if new.any():
            self._check_short(rows[new], stored if new.all() else stored[new])
        return stored

    def _check_short(self, rows: NDArray[np.int64], stored: NDArray[np.uint8]) -> None:
        raw, length = stored.tobytes(), self._longest
        chunks = (raw[at : at + length - CHECKSUM_BYTES] for at in range(0, len(raw), length))
        found = np.fromiter(map(google_crc32c.value, chunks), np.uint32, len(rows))
        sums = np.ascontiguousarray(stored[:, -CHECKSUM_BYTES:]).view("<u4")[:, 0]
        if not np.array_equal(found, sums):
            raise DamagedShardError(f"chunk 0 of shard {self.source.name} fails its checksum")
        if self._expected is not None and not np.array_equal(found, self._expected[rows, 0]):
            raise DamagedShardError(f"chunk 0 of shard {self.source.name} is of another place")
        self._verified[rows, 0] = True

    def _read_into(self, row: int, chunks: list[int], parts: list[list[NDArray[np.uint8]]]) -> None:
        known = self._verified[row, chunks].all()
        sums = [_UNUSED] * len(chunks) if known else list(np.empty((len(chunks), CHECKSUM_BYTES), dtype=np.uint8))
        places = [self._place(row, chunk) for chunk in chunks]
        ranges = [(*place, [*pieces, end]) for place, pieces, end in zip(places, parts, sums, strict=True)]
        self._fetch(ranges, f"chunk {chunks[-1]} of shard {self.source.name} is cut short")
        if known:
            return
        for chunk, pieces, end in zip(chunks, parts, sums, strict=True):
            found = google_crc32c.value(pieces[0])
            for piece in pieces[1:]:
                found = google_crc32c.extend(found, piece)
            self._require(found.to_bytes(CHECKSUM_BYTES, "little"), end, row, chunk)

    def _decompress(self, chunk: int, stored: NDArray[np.uint8], parts: list[NDArray[np.uint8]]) -> None:
        whole = parts[0] if len(parts) == 1 else np.empty(self.layout.chunk_bytes, dtype=np.uint8)
        try:
            decompress(stored[:-CHECKSUM_BYTES], whole)
        except ValueError as error:
            raise DamagedShardError(
                f"chunk {chunk} of shard {self.source.name} does not decompress ({error})"
            ) from error
        if len(parts) > 1:
            for part, piece in zip(parts, whole.reshape(len(parts), -1), strict=True):
                part[:] = piece

    def _checked(self, row: int, chunks: Sequence[int]) -> list[NDArray[np.uint8]]:
        places = [self._place(row, chunk) for chunk in chunks]
        stored = [np.empty(length, dtype=np.uint8) for _, length in places]
        ranges = [(*place, [whole]) for place, whole in zip(places, stored, strict=True)]
        self._fetch(ranges, f"chunk {chunks[-1]} of shard {self.source.name} is cut short")
        for chunk, whole in zip(chunks, stored, strict=True):
            if not self._verified[row, chunk]:
                self._require(checksum(whole[:-CHECKSUM_BYTES]), whole[-CHECKSUM_BYTES:], row, chunk)
        return stored

    def _fetch(self, ranges: Sequence[Range], otherwise: str) -> None:
        try:
            self.source.read(ranges)
        except CutShortError as error:
            raise DamagedShardError(otherwise) from error
        except OSError as error:  # of a disk that fails
            unreadable = DamagedShardError(f"shard {self.source.name} cannot be read: {error.strerror}")
            raise too_many(error) or unreadable from error

    def _place(self, row: int, chunk: int) -> tuple[int, int]:
        offset, length = self._places.of(row, chunk)
        there = length == self._longest or (self.layout.compressed and CHECKSUM_BYTES < length < self._longest)
        if not there or offset + length > self.source.size:
            raise DamagedShardError(f"chunk {chunk} is missing from shard {self.source.name}")
        return offset, length

    def _require(self, computed: bytes, stored: NDArray[np.uint8], row: int, chunk: int) -> None:
        if computed != stored.tobytes():
            raise DamagedShardError(f"chunk {chunk} of shard {self.source.name} fails its checksum")
        if self._expected is not None and int.from_bytes(computed, "little") != self._expected[row, chunk]:
            raise DamagedShardError(f"chunk {chunk} of shard {self.source.name} is of another place")
        self._verified[row, chunk] = True


def shard_digest(checksums: bytes | bytearray, index: bytes) -> str:
    """Hash the checksums of all chunks of a shard, in the order of the file, and its index: what a receipt holds."""
    whole = hashlib.sha256(checksums)
    whole.update(index)
    return whole.hexdigest()


def checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    """Give the crc32c as it is stored behind a chunk: four bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
