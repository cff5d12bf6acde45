"""Read activations of many samples into preallocated memory, one long read a sample."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.shard import DamagedShardError, ShardReader
from losa_cache.cache.store import REPAIR, ActivationCache
from losa_cache.device import default_workers
from losa_cache.errors import UserError

OPEN_SHARDS = 256
READERS = min(8, default_workers())  # threads


class BlockReader:
    """Read chosen points of a cache, any rows in any order, by a few threads.

    Args:
        cache: the opened cache.
        points: names of what to read (``losa_cache.points``), each once, in any order.
        threads: that read at the same time.
        direct: read past the page cache.

    Raises:
        UserError: for a point that the cache does not hold.
    """

    def __init__(
        self, cache: ActivationCache, points: Sequence[str], *, threads: int = READERS, direct: bool = False
    ) -> None:
        stored = cache.manifest.points
        if missing := [point for point in points if point not in stored]:
            raise UserError(f"cache {str(cache.path)!r} holds {', '.join(stored)}, not {', '.join(missing)}.")
        self.cache = cache
        self.device = torch.device("cpu")
        self.waits = direct  # for the disk: otherwise the system reads ahead
        self.positions = [stored.index(point) for point in points]
        self._direct = direct
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._split = threads
        self._shards: OrderedDict[int, ShardReader] = OrderedDict()
        self._guard = Lock()

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Have the system read ahead what of these rows this reader has not read yet."""
        for row in rows.tolist():
            with self._opened(row) as (shard, place):
                shard.expect(place, self.positions)

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Fill one tensor a point with the stored values of these rows.

        Args:
            rows: ``(batch,)``.
            targets: CPU tensors of stored elements, contiguous, ``(>= batch, tokens, columns)``; the first ``batch``
                entries are filled.

        Raises:
            UserError: for a damaged chunk, naming sample and shard: never wrong numbers.
        """
        views = [target.view(torch.uint8).numpy().reshape(len(target), -1) for target in targets]
        parts = np.array_split(np.arange(len(rows)), self._split)
        for done in [self._threads.submit(self._read_part, rows, part, views) for part in parts if len(part)]:
            done.result()

    def close(self) -> None:
        """Stop the threads and close the files."""
        self._threads.shutdown()
        self._shards.clear()

    def _read_part(self, rows: NDArray[np.int64], part: NDArray[np.int64], views: Sequence[NDArray[np.uint8]]) -> None:
        self.expect(rows[part])  # all at once, before the first is waited for
        for entry, row in zip(part.tolist(), rows[part].tolist(), strict=True):
            with self._opened(row) as (shard, place):
                shard.read(place, {at: view[entry] for at, view in zip(self.positions, views, strict=True)})

    @contextmanager
    def _opened(self, row: int) -> Iterator[tuple[ShardReader, int]]:
        """Give a row's shard and its place there; name the sample where that fails."""
        shard, place = divmod(row, self.cache.layout.shard_samples)
        try:
            yield self._shard(shard), place
        except (DamagedShardError, FileNotFoundError) as error:
            raise UserError(
                f"sample {self.cache.ids[row]!r} cannot be read from shard {shard} of {str(self.cache.path)!r} "
                f"({error}): {REPAIR}."
            ) from error

    def _shard(self, shard: int) -> ShardReader:
        with self._guard:
            if shard in self._shards:
                self._shards.move_to_end(shard)
                return self._shards[shard]
            reader = self._shards[shard] = ShardReader(
                self.cache.open_shard(shard, direct=self._direct), self.cache.layout
            )
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
            return reader
