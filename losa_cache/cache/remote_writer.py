"""Write a cache on a server, shard by shard: each is written whole in a scratch folder, uploaded, then its receipt."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from losa_cache.cache.core import LIST, ROOT
from losa_cache.cache.location import REQUESTS
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.remote import RemotePath
from losa_cache.cache.store import ActivationCache, receipts_of, shard_path
from losa_cache.cache.unit import RemoteUnit, Uploads
from losa_cache.cache.writer import CacheWriter
from losa_cache.errors import UserError
from losa_cache.machine.memory import readable_bytes

SCRATCH_SHARDS = 2  # one that is written, one that is uploaded


class RemoteWriter(CacheWriter):
    """Create or resume a cache on a server. What counts lies there: any machine can go on.

    Args:
        path: the ``.zarr`` to be; the others as of :class:`CacheWriter`.

    Raises:
        UserError: as :class:`CacheWriter`, or if the server fails.
    """

    path: RemotePath

    def __init__(self, path: RemotePath, *arguments: Any, **named: Any) -> None:
        self._uploads = Uploads()
        super().__init__(path, *arguments, **named)

    def unit(self, shard: int) -> RemoteUnit:
        """Name the objects of a shard."""
        path = shard_path(self.path, self.manifest.fields["tap"], shard)
        receipt = Receipt(receipts_of(self.path), shard, self.manifest.identity)
        return RemoteUnit(path, receipt, self.hold.disk, self._uploads)

    def missing(self) -> list[int]:
        """List the shards that are not done."""
        with ThreadPoolExecutor(REQUESTS) as threads:
            done = list(threads.map(lambda shard: self.unit(shard).done(), range(self.layout.shards)))
        return [shard for shard, receipt in enumerate(done) if not receipt]

    def finish(self) -> ActivationCache:
        """Mark the cache complete, once all is uploaded, and open it."""
        self._uploads.wait()
        return super().finish()

    def close(self) -> None:
        """Leave the cache as it is, finished or not, for the next run."""
        self._uploads.close()
        super().close()

    def _begun(self) -> bool:
        if any(place.is_file() for place in (self.path / ROOT, receipts_of(self.path) / "core" / LIST)):
            return True
        return self.path.lists and bool(self.path.names())

    def _sweep(self) -> None:
        """Leave all as it is: what was not uploaded whole is not there."""

    def _require_room(self) -> None:
        shards = sorted(self.layout.shard_bytes(shard) for shard in self.missing())
        needed = sum(shards[-SCRATCH_SHARDS:])
        free = shutil.disk_usage(self.hold.disk).free
        if needed > free:
            raise UserError(
                f"an upload needs {readable_bytes(needed)} here for the shards under way, but {str(self.hold.disk)!r} "
                f"has {readable_bytes(free)} free: set LOSA_CACHE_HOME to another disk."
            )
