"""A copy of a cache on a server: shards first, then the metadata files, the root's ``zarr.json`` last."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from losa_cache.cache.health import ShardCheck, check_shard
from losa_cache.cache.local_copy import PIECE_BYTES, damaged_shard, metadata_contents
from losa_cache.cache.metadata_files import LIST, MetadataFiles
from losa_cache.cache.object_lock import ObjectLock
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import StorePath, receipts_of, shard_path
from losa_cache.cache.store import ActivationCache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.files import sealed
from losa_cache.outside import UnreadableError
from losa_cache.sources import list_path


class Upload:
    """One cache that is copied to a server.

    A shard counts as copied when its receipt is there. So an interrupted copy is gone on with, from any machine.

    Args:
        cache: complete, with its receipts.
        lock: of the place on the server.
        progress: is called with the share of the shards that were copied.

    Raises:
        UserError: if the cache lies without its receipts.
    """

    def __init__(self, cache: ActivationCache, lock: ObjectLock, progress: Callable[[float], None]) -> None:
        if cache.digests is None:
            raise UserError(
                f"{str(cache.path)!r} has no receipts, which say what its files are: copy {str(cache.receipts)!r} with "
                "it."
            )
        self.cache, self.target, self.scratch, self.progress = cache, lock.path, lock.disk, progress
        self.digests = cache.digests

    def make(self) -> None:
        """Copy what is missing.

        Raises:
            UserError: if a file is damaged, or what is at the place are receipts of another cache.
        """
        self._require_own_receipts()
        shards = self.cache.layout.shards
        for shard in range(shards):
            self._copy_shard(shard)
            self.progress((shard + 1) / shards)
        contents = metadata_contents(self.cache)
        copy = receipts_of(self.target) / "core"
        for name, content in contents.items():
            (copy / name).write(content)
        (copy / LIST).write(sealed({"files": dict(self.digests)}))
        for name, content in contents.items():  # the root comes last
            (self.target / name).write(content)

    def _require_own_receipts(self) -> None:
        receipts = receipts_of(self.target)
        theirs = MetadataFiles(self.target, receipts)
        with suppress(OSError):  # an upload writes this list after all shards
            try:
                same = theirs.files() == self.digests
            except ValueError:
                same = False
            if not same:
                raise UserError(
                    f"{str(receipts)!r} is there already, of another cache: remove it or name another place."
                )

    def _copy_shard(self, shard: int) -> None:
        cache, identity = self.cache, self.cache.manifest.identity
        own, theirs = Receipt(cache.receipts, shard, identity), Receipt(receipts_of(self.target), shard, identity)
        path = shard_path(self.target, cache.manifest.fields["tap"], shard)
        try:
            content = own.read()
        except DamagedShardError as error:
            raise damaged_shard(self.cache, shard, str(error)) from error
        with suppress(DamagedShardError, FileNotFoundError):
            if theirs.read() == content and path.size() == content["bytes"]:
                return
        skipped = cache.manifest.skipped_rows & frozenset(cache.layout.rows(shard))
        with self._on_disk(cache.shard_path(shard)) as file:
            found = check_shard(ShardCheck(shard, file, own, cache.layout, skipped))
            if found.damage is not None:
                raise damaged_shard(self.cache, shard, found.damage.reason)
            path.upload(file)
        with suppress(FileNotFoundError, UnreadableError):
            list_path(self.target, shard).write(list_path(cache.path, shard).read())
        if found.checksums is not None:
            theirs.write_list(found.checksums)
        theirs.write(content)

    @contextmanager
    def _on_disk(self, file: StorePath) -> Iterator[LocalPath]:
        """Give a shard on this machine's disk: in the scratch folder, if it lies on another server."""
        if file.on_disk is not None:
            yield LocalPath(file.on_disk)
            return
        scratch = LocalPath(self.scratch / file.name)
        try:
            _fetch(file, scratch)
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)


def _fetch(file: StorePath, scratch: LocalPath) -> None:
    source = file.open_bytes()
    with open(scratch, "wb") as out:
        for offset in range(0, source.size, PIECE_BYTES):
            piece = np.empty(min(PIECE_BYTES, source.size - offset), dtype=np.uint8)
            source.read([(offset, piece.nbytes, [piece])])
            out.write(piece.data)
