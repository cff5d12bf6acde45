"""Apply a function to the shards of a cache in many workers. A worker has one shard at a time, because caches are
larger than memory.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import count
from typing import TypeVar

import dask
from dask.callbacks import Callback

from losa_cache.cluster.connect import connect

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_shards(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    scheduler: str | None = None,
    pool: Executor | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Result]:
    """Apply ``work`` to each item.

    Args:
        work: function of one item; it must be at the level of a module, because it may run in another process.
        items: its arguments, one for each shard; they are small.
        scheduler: address of a dask.distributed scheduler whose workers see the same paths; by default threads of this
            process.
        pool: the threads; by default one for each core.
        progress: is given the share done.

    Returns:
        the results in the order of the items.

    Raises:
        UserError: for a scheduler that does not answer, or if ``distributed`` is not installed.
    """
    if scheduler is not None:
        return _distributed(work, items, scheduler, progress)
    done = count(1)
    with Callback(posttask=lambda *_: progress(next(done) / len(items))):
        tasks = [dask.delayed(work, pure=False)(item) for item in items]
        return list(dask.compute(*tasks, scheduler="threads", pool=pool, optimize_graph=False))


def _distributed(
    work: Callable[[Item], Result], items: Sequence[Item], address: str, progress: Callable[[float], None]
) -> list[Result]:
    with connect(address) as client:
        from distributed import as_completed

        futures = client.map(work, items, pure=False)
        for done, _ in enumerate(as_completed(futures, loop=client.loop), start=1):
            progress(done / len(items))
        return list(client.gather(futures))
