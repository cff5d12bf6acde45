"""Read activations of many samples into preallocated memory, one long read a sample."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.checked import REPAIR
from losa_cache.cache.shard import DamagedShardError, ShardReader
from losa_cache.cache.store import ActivationCache
from losa_cache.device import default_workers
from losa_cache.errors import UserError

OPEN_SHARDS = 256
READERS = min(8, default_workers())  # threads
REMOTE_READERS = 32  # threads at most, which wait for a server most of the time
FEWEST_REMOTE_READERS = 4
UNDER_WAY = 64 * 1024 * 1024  # bytes asked of a server at once: on a slow line every request must end in 30 seconds


class BlockReader:
    """Read the planes that hold chosen points of a cache, any rows in any order, by a few threads.

    Args:
        cache: the opened cache.
        points: names of what to read (``losa_cache.points``), each once, in any order.
        threads: that read at the same time; by default one a core, at most 8; from a server 4 to 32, up to 64 MiB at
            once.
        direct: read past the page cache.

    Raises:
        UserError: for a point that the cache does not hold.
    """

    def __init__(
        self, cache: ActivationCache, points: Sequence[str], *, threads: int | None = None, direct: bool = False
    ) -> None:
        stored = cache.manifest.points
        if missing := [point for point in points if point not in stored]:
            raise UserError(f"cache {str(cache.path)!r} holds {', '.join(stored)}, not {', '.join(missing)}.")
        self.cache = cache
        self.device = torch.device("cpu")
        self.waits = direct or cache.remote  # otherwise the system reads ahead
        self.positions = cache.precision.planes([stored.index(point) for point in points])
        self._direct = direct
        self._split = threads or _threads(cache, len(self.positions))
        self._threads = ThreadPoolExecutor(self._split, thread_name_prefix="read")
        self._shards: OrderedDict[int, Future[ShardReader]] = OrderedDict()
        self._guard = Lock()

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Have the system read ahead what of these rows this reader has not read yet."""
        for row in rows.tolist():
            with self._opened(row) as (shard, place):
                shard.expect(place, self.positions)

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Fill one tensor a plane with the stored values of these rows.

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
        except (DamagedShardError, OSError) as error:
            raise UserError(
                f"sample {self.cache.ids[row]!r} cannot be read from shard {shard} of {str(self.cache.path)!r} "
                f"({error}): {REPAIR}."
            ) from error

    def _shard(self, shard: int) -> ShardReader:
        """Give a shard's reader; the first who asks opens it, the others wait for no other shard than theirs."""
        with self._guard:
            opened = self._shards.get(shard)
            if first := opened is None:
                opened = self._shards[shard] = Future()
                if len(self._shards) > OPEN_SHARDS:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(shard)
        if first:
            try:
                opened.set_result(self.cache.shard_reader(shard, direct=self._direct))
            except BaseException as error:
                with self._guard:
                    self._shards.pop(shard, None)
                opened.set_exception(error)
        return opened.result()


def _threads(cache: ActivationCache, points: int) -> int:
    if not cache.remote:
        return READERS
    return max(FEWEST_REMOTE_READERS, min(REMOTE_READERS, UNDER_WAY // (points * cache.layout.block_bytes)))
