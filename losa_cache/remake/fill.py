"""Fill a new cache with rows of finished ones: threads prepare blocks of a shard, one after the other is written."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from losa_cache.cache.shard_map import map_shards
from losa_cache.cache.store import ActivationCache
from losa_cache.cache.writer import CacheWriter, saying_unfinished
from losa_cache.machine.prefetch import work_ahead
from losa_cache.remake.carried import CarriedSources
from losa_cache.remake.origin import Origin, blocks
from losa_cache.remake.values import Row, Rows


class _Prepare:  # no dataclass: dask would take it apart
    """Prepare a block: for each row its chunks, or ``None`` if its sample was skipped."""

    def __init__(self, origin: Origin, makers: Sequence[Rows], skipped: Sequence[frozenset[int]]) -> None:
        self.origin, self.makers, self.skipped = origin, makers, skipped

    def __call__(self, rows: range) -> list[Row | None]:
        parts, there = self.origin.part[rows.start : rows.stop], self.origin.row[rows.start : rows.stop]
        found: list[Row | None] = [None] * len(rows)
        for part in np.unique(parts).tolist():
            skipped = self.skipped[part]
            places = [at for at in np.flatnonzero(parts == part).tolist() if int(there[at]) not in skipped]
            if places:
                made = self.makers[part](there[places])
                for at, row in zip(places, made, strict=True):
                    found[at] = row
        return found


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch add no threads to the workers: those would wait for each other, and products depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fill(
    writer: CacheWriter,
    caches: Sequence[ActivationCache],
    makers: Sequence[Rows],
    origin: Origin,
    *,
    rows: int,
    workers: int,
    progress: Callable[[float], None],
) -> None:
    """Write every missing shard.

    Memory is that of two blocks a thread, however large the caches are.

    Args:
        writer: of the new cache.
        caches: that rows come from.
        makers: of the rows of each.
        origin: of each row.
        rows: of a block.
        workers: threads.
        progress: is called with the share of the rows that are there.

    Raises:
        UserError: for a damaged row, or a disk that fills up.
    """
    layout, missing = writer.layout, writer.missing()
    prepare = _Prepare(origin, makers, [cache.manifest.skipped_rows for cache in caches])
    reasons = [{entry["row"]: str(entry["reason"]) for entry in cache.manifest.skipped} for cache in caches]
    sources = CarriedSources(writer, caches, origin)
    left = sum(len(layout.rows(shard)) for shard in missing)
    every = list(blocks(layout, missing, rows))
    windows = [every[start : start + workers] for start in range(0, len(every), workers)]
    with saying_unfinished(writer.path), one_thread_each(), ThreadPoolExecutor(workers, "prepare") as pool:
        ready = work_ahead(lambda window: (window, map_shards(prepare, window, pool=pool)), windows)
        try:
            for window, prepared in ready:
                for part, found in zip(window, prepared, strict=True):
                    for row, one in zip(part, found, strict=True):
                        sources.written(row)
                        if one is None:
                            writer.append(row, None, reasons[origin.part[row]][int(origin.row[row])])
                        else:
                            writer.append(row, one.packed, overflowed=one.overflowed, non_finite=one.non_finite)
                    left -= len(part)
                    progress(1 - left / layout.samples)
        finally:
            ready.close()
