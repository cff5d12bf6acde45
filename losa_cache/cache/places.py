"""Where the chunks of a shard lie, as its index says. A run keeps this for every shard that it reads, so it must be
small.
"""

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.layout import Layout

MISSING = 2**64 - 1


class Places:
    """Offsets and lengths of a shard's chunks.

    Nearly all uncompressed shards hold their first samples complete and one after the other. Such an index follows from
    the number of samples: it is compared once and not kept.

    Args:
        index: uint64 ``(shard_samples, sample_chunks, 2)``, offset and length of each chunk.
        layout: of the store.
    """

    def __init__(self, index: NDArray[np.uint64], layout: Layout) -> None:
        self._layout = layout
        whole = (index[..., 0] != MISSING).all(axis=1)
        self._count = len(whole) if whole.all() else int(whole.argmin())
        self._kept: NDArray[np.uint64] | None = None
        if not np.array_equal(self._regular(), index):
            self._kept = index.copy()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the offsets take."""
        return 0 if self._kept is None else self._kept.nbytes

    @property
    def index(self) -> NDArray[np.uint64]:
        """The index that this was made from."""
        return self._regular() if self._kept is None else self._kept

    def of(self, sample: int, chunk: int) -> tuple[int, int]:
        """Give offset and length of a chunk; both are ``MISSING`` if the chunk is not there."""
        if self._kept is not None:
            offset, length = self._kept[sample, chunk].tolist()
            return offset, length
        size = self._layout.stored_chunk_bytes
        return (sample * self._layout.sample_bytes + chunk * size, size) if sample < self._count else (MISSING, MISSING)

    def of_samples(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Give offset and length of the first chunk of each of these samples, as :meth:`of` does."""
        if self._kept is not None:
            return self._kept[samples, 0, 0], self._kept[samples, 0, 1]
        there, size = samples < self._count, np.uint64(self._layout.stored_chunk_bytes)
        offsets = samples.astype(np.uint64) * np.uint64(self._layout.sample_bytes)
        return np.where(there, offsets, np.uint64(MISSING)), np.where(there, size, np.uint64(MISSING))

    def _regular(self) -> NDArray[np.uint64]:
        layout, size = self._layout, self._layout.stored_chunk_bytes
        index = np.full((layout.shard_samples, layout.sample_chunks, 2), MISSING, dtype="<u8")
        there = index[: self._count]
        there[..., 0] = np.arange(self._count * layout.sample_chunks).reshape(there.shape[:2]) * size
        there[..., 1] = size
        return index
