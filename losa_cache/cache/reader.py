"""Read the activations of many samples into preallocated memory, by one long read for each sample."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.checked import REPAIR
from losa_cache.cache.descriptors import ReplacedError, too_many
from losa_cache.cache.shard import DamagedShardError, PackedSample, ShardReader
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.machine.device import default_workers

KEPT_BYTES = 2**28  # of memory, for what is known of all shards: where chunks lie, and which of them were checked
ATTEMPTS = 3  # to read a shard that is replaced meanwhile
READERS = min(8, default_workers())  # threads
REMOTE_READERS = 32  # threads at most, which wait for a server most of the time
FEWEST_REMOTE_READERS = 4
UNDER_WAY = 64 * 1024 * 1024  # bytes asked of a server at once: on a slow line every request must end in 30 seconds


class BlockReader:
    """Read chosen points of a cache, any rows in any order, by a few threads.

    Args:
        cache: the opened cache.
        points: names of what to read (``losa_cache.points``), each once, in any order.
        threads: number of threads that read at the same time; by default one for each core, at most 8. From a server 4
            to 32, such that at most 64 MiB are read at once.
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
        self.positions = cache.precision.stored_layers([stored.index(point) for point in points])
        self._direct = direct
        self._split = threads or _threads(cache, len(self.positions))
        self._threads = ThreadPoolExecutor(self._split, thread_name_prefix="read")
        self._shards: OrderedDict[int, Future[ShardReader]] = OrderedDict()
        self._kept = 0
        self._guard = Lock()

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Ask the system to read ahead those of these rows that this reader has not read yet."""
        for shard, part in self._by_shard(rows):
            self._work(shard, part, lambda reader, places: reader.expect(places, self.positions))

    def read(self, rows: NDArray[np.int64], targets: Sequence[Tensor]) -> None:
        """Fill one tensor for each stored layer with the stored values of these rows.

        Args:
            rows: ``(batch,)``.
            targets: CPU tensors of stored elements, contiguous, ``(>= batch, tokens, columns)``; the first ``batch``
                entries are filled.

        Raises:
            UserError: for a damaged chunk, naming sample and shard. It never gives wrong numbers.
        """
        views = [target.view(torch.uint8).numpy().reshape(len(target), -1) for target in targets]
        order = np.argsort(rows, kind="stable")  # each thread has neighbours, as far as there are any
        parts = np.array_split(order, self._split)
        for done in [self._threads.submit(self._read_part, rows, part, views) for part in parts if len(part)]:
            done.result()

    def stored(self, row: int, chunks: Sequence[int]) -> PackedSample:
        """Read chunks of a row as they are stored, checked but not decoded, in the caller's thread.

        Args:
            row: of the array.
            chunks: numbers of the chunks.

        Raises:
            UserError: as :meth:`read`.
        """
        found: list[PackedSample] = []

        def take(reader: ShardReader, places: NDArray[np.int64]) -> None:
            found.append(reader.stored(int(places[0]), chunks))

        self._work(row // self.cache.layout.shard_samples, np.array([row]), take)
        return found[-1]

    def close(self) -> None:
        """Stop the threads and close the files."""
        self._threads.shutdown()
        self._shards.clear()

    def _read_part(self, rows: NDArray[np.int64], part: NDArray[np.int64], views: Sequence[NDArray[np.uint8]]) -> None:
        self.expect(rows[part])  # all at once, before the first is waited for
        targets, done = dict(zip(self.positions, views, strict=True)), 0
        for shard, own in self._by_shard(rows[part]):
            entries = part[done : done + len(own)]
            self._work(shard, own, partial(ShardReader.read_rows, targets=targets, entries=entries))
            done += len(own)

    def _by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Split the rows at every change of the shard."""
        if not len(rows):
            return
        shards = rows // self.cache.layout.shard_samples
        bounds = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(rows)]
        for start, stop in pairwise(bounds):
            yield int(shards[start]), rows[start:stop]

    def _work(
        self, shard: int, rows: NDArray[np.int64], work: Callable[[ShardReader, NDArray[np.int64]], None]
    ) -> None:
        """Do something with rows of one shard, given by their places there; if it fails, name the sample."""
        places = rows - shard * self.cache.layout.shard_samples
        for _ in range(ATTEMPTS):
            try:
                reader = self._shard(shard)
                work(reader, places)
                return
            except ReplacedError:  # by a repair: what was learned of it may not hold
                self._forget(shard)
            except (DamagedShardError, OSError) as error:
                raise too_many(error) or self._damaged(shard, rows, error) from error
        raise UserError(f"shard {shard} of {str(self.cache.path)!r} changes while it is read: wait for its writer.")

    def _damaged(self, shard: int, rows: NDArray[np.int64], error: Exception) -> UserError:
        """Find the sample that cannot be read, if several were read together."""
        row = int(rows[0])
        if len(rows) > 1 and isinstance(error, DamagedShardError):
            layout = self.cache.layout
            for row in rows.tolist():
                nowhere = {at: np.empty(layout.block_bytes, dtype=np.uint8) for at in self.positions}
                try:
                    self._shard(shard).read(row - shard * layout.shard_samples, nowhere)
                except (DamagedShardError, OSError) as first:
                    error = first
                    break
        return UserError(
            f"sample {self.cache.ids[row]!r} cannot be read from shard {shard} of {str(self.cache.path)!r} "
            f"({error}): {REPAIR}."
        )

    def _shard(self, shard: int) -> ShardReader:
        """Give a shard's reader. The first thread that needs it opens it; other threads wait only if they need the same
        shard.
        """
        with self._guard:
            opened = self._shards.get(shard)
            if first := opened is None:
                opened = self._shards[shard] = Future()
            else:
                self._shards.move_to_end(shard)
        if first:
            try:
                reader = self.cache.shard_reader(shard, direct=self._direct)
            except BaseException as error:
                with self._guard:
                    self._shards.pop(shard, None)
                opened.set_exception(error)
            else:
                opened.set_result(reader)
                self._count(reader)
        return opened.result()

    def _count(self, reader: ShardReader) -> None:
        """Forget the indices of shards that were read least recently, if all indices take too much memory."""
        with self._guard:
            self._kept += reader.nbytes
            while self._kept > KEPT_BYTES and len(self._shards) > 1:
                shard, oldest = next(iter(self._shards.items()))
                if not oldest.done() or oldest.result() is reader:
                    return
                self._kept -= oldest.result().nbytes
                del self._shards[shard]

    def _forget(self, shard: int) -> None:
        with self._guard:
            opened = self._shards.pop(shard, None)
            if opened is not None and opened.done() and opened.exception() is None:
                self._kept -= opened.result().nbytes


def _threads(cache: ActivationCache, points: int) -> int:
    if not cache.remote:
        return READERS
    return max(FEWEST_REMOTE_READERS, min(REMOTE_READERS, UNDER_WAY // (points * cache.layout.block_bytes)))
