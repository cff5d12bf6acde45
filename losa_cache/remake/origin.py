"""Which row of which cache each row of a new cache comes from. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.layout import Layout

BLOCK_BYTES = 32 * 1024 * 1024  # of values as float32, or of stored elements: what a thread works on at a time
MOST_ROWS = 256


@dataclass(frozen=True)
class Origin:
    """The origin of every row of a new cache.

    Attributes:
        part: ``(rows,)``, number of the cache.
        row: ``(rows,)``, row of that cache.
    """

    part: NDArray[np.uint16]
    row: NDArray[np.int64]

    @classmethod
    def one(cls, rows: int) -> "Origin":
        """Every row of one cache, in its order."""
        return cls(np.zeros(rows, np.uint16), np.arange(rows))

    @classmethod
    def mixed(cls, counts: Sequence[int], *, views: int, seed: int) -> "Origin":
        """All samples of several caches, drawn at random from these, each cache in its own order.

        The samples of every cache are in random order. So are those of the new cache then, and each cache is read from
        its beginning to its end.

        Args:
            counts: samples of each cache.
            views: rows of a sample.
            seed: of the draw.
        """
        part = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
        np.random.default_rng(seed).shuffle(part)
        sample = np.empty(len(part), np.int64)
        for number, count in enumerate(counts):
            sample[part == number] = np.arange(count)
        return cls(np.repeat(part, views), (sample[:, None] * views + np.arange(views)).reshape(-1))


def block_rows(row_bytes: int) -> int:
    """Say how many rows of so many bytes a thread works on at a time: at least 1, at most 256."""
    return max(1, min(MOST_ROWS, BLOCK_BYTES // row_bytes))


def blocks(layout: Layout, shards: Sequence[int], count: int) -> Iterator[range]:
    """Cut shards into blocks of at most ``count`` rows, each from the beginning of its shard on.

    So a row is computed together with the same rows however many threads there are, and wherever a kill fell.
    """
    for shard in shards:
        rows = layout.rows(shard)
        yield from (rows[start : start + count] for start in range(0, len(rows), count))
