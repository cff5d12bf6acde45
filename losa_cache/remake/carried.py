"""Lists of the files that samples were computed from, carried over from the caches that a new one is made of."""

from collections.abc import Sequence
from functools import lru_cache

from losa_cache.cache.store import ActivationCache
from losa_cache.cache.writer import CacheWriter
from losa_cache.remake.origin import Origin
from losa_cache.sources import Source, read_list, write_list

KEPT = 16  # lists in memory: rows come from each cache in its own order


class CarriedSources:
    """Write the list of each shard of a new cache, if the caches that its rows come from have theirs.

    Args:
        writer: of the new cache.
        caches: that rows come from.
        origin: of each row.
    """

    def __init__(self, writer: CacheWriter, caches: Sequence[ActivationCache], origin: Origin) -> None:
        self._writer, self._caches, self._origin = writer, caches, origin
        self._list = lru_cache(KEPT)(self._read)

    def written(self, row: int) -> None:
        """Write the list of a shard whose last row is about to be written: before its receipt."""
        layout = self._writer.layout
        shard = row // layout.shard_samples
        rows = layout.rows(shard)
        if row != rows[-1]:
            return
        found = []
        for own in rows:
            if (source := self._source(own)) is None:
                return  # an older cache, or samples that lie in no files
            found.append(source)
        write_list(self._writer.path, self._writer.manifest.identity, shard, found)

    def _source(self, row: int) -> Source | None:
        part, there = int(self._origin.part[row]), int(self._origin.row[row])
        shard, place = divmod(there, self._caches[part].layout.shard_samples)
        listed = self._list(part, shard)
        return None if listed is None or place >= len(listed) else listed[place]

    def _read(self, part: int, shard: int) -> list[Source] | None:
        cache = self._caches[part]
        return read_list(cache.path, cache.manifest.identity, shard)
