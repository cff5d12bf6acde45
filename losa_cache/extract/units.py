"""Units of work: what one process computes and writes at a time, where several extract one cache. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

from losa_cache.cache.layout import Layout


@dataclass(frozen=True)
class Units:
    """The smallest runs of whole shards that are runs of whole batches, too.

    So the rows of a unit are computed in the same batches, and come out the same, whoever computes them.

    Attributes:
        layout: of the cache.
        batch: rows of a batch.
    """

    layout: Layout
    batch: int

    @property
    def length(self) -> int:
        """Shards of a unit; the last may have fewer."""
        return lcm(self.layout.shard_samples, self.batch) // self.layout.shard_samples

    def __len__(self) -> int:
        return (self.layout.shards + self.length - 1) // self.length

    def shards(self, unit: int) -> range:
        """The shards of a unit."""
        start = unit * self.length
        return range(start, min(start + self.length, self.layout.shards))

    def left(self, missing: Iterable[int]) -> str:
        """Say how many units other parts have to write, to which some shards belong."""
        count = len({shard // self.length for shard in missing})
        return f"this part is done; {count} of the cache's {len(self)} units of work are left to other parts."
