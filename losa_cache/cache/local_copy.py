"""A copy of a cache in a folder of this machine: every chunk is checked, and it can be resumed."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np

from losa_cache.cache.byte_source import ByteSource, CutShortError
from losa_cache.cache.checked import REPAIR, sha256
from losa_cache.cache.health import ShardCheck, check_shard
from losa_cache.cache.metadata_files import LIST, MetadataFiles, is_metadata
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.storage import receipts_of, shard_path
from losa_cache.cache.store import ActivationCache
from losa_cache.cache.stores.local import LocalPath
from losa_cache.errors import UserError
from losa_cache.files import clear, publish, sync_tree, write_sealed, write_whole
from losa_cache.machine.sizes import readable_bytes
from losa_cache.outside import UnreadableError

PIECE_BYTES = 4 * 1024 * 1024
PIECES, REMOTE_PIECES = 4, 16  # read at once
SHARDS = 2  # one is checked while the next is copied


class LocalCopy:
    """One cache that is copied to one folder, which has a temporary name until all of it is there.

    Args:
        cache: complete.
        target: the folder.
        progress: is called with the share of the bytes that were copied.
        otherwise: what to do where it has no room, as the end of a sentence.
    """

    def __init__(
        self, cache: ActivationCache, target: LocalPath, progress: Callable[[float], None], otherwise: str
    ) -> None:
        self._otherwise = otherwise
        self.cache, self.target, self.progress = cache, target, progress
        self.partial = target.with_name(target.name + ".partial")
        self._identity = cache.manifest.identity
        self.sizes = cache.shard_sizes()
        if lost := sorted(set(range(cache.layout.shards)) - self.sizes.keys()):
            raise damaged_shard(self.cache, lost[0], "it is missing")
        self.lacking = [shard for shard in self.sizes if not self._done(shard)]
        self._left = sum(self.sizes[shard] for shard in self.lacking)
        self._guard = Lock()

    def make(self) -> None:
        """Copy what is missing, then give the copy its name."""
        self._require_room()
        with ThreadPoolExecutor(REMOTE_PIECES if self.cache.remote else PIECES, "piece") as pieces:
            if self.cache.digests is not None:  # otherwise it came without its receipts
                list(pieces.map(self._copy_receipt, range(self.cache.layout.shards)))
            self._copy_metadata()
            with ThreadPoolExecutor(SHARDS, "shard") as shards:
                list(shards.map(lambda shard: self._copy_shard(shard, pieces), self.lacking))
        sync_tree(self.partial)
        publish(self.partial, self.target)

    def _copy_metadata(self) -> None:
        """Copy the metadata files, and their copy if there is one."""
        contents, core = metadata_contents(self.cache), receipts_of(self.target) / "core"
        stale = [name for name, _ in self.partial.scan() if is_metadata(name) and name not in contents]
        for name in stale:  # target sets that the cache had when the copy was begun
            (self.partial / name).unlink()
            with suppress(OSError):  # the rest is not empty
                os.removedirs((self.partial / name).parent)
        for name, content in contents.items():
            _write(self.partial / name, content)
        clear(core)
        if self.cache.digests is not None:
            for name, content in contents.items():
                _write(core / name, content)
            write_sealed(core / LIST, {"files": dict(self.cache.digests)})

    def _copy_receipt(self, shard: int) -> None:
        source = Receipt(self.cache.receipts, shard, self._identity)
        target = Receipt(receipts_of(self.target), shard, self._identity)
        try:
            target.write(source.read())
        except DamagedShardError as error:
            raise damaged_shard(self.cache, shard, str(error)) from error
        if (listed := source.listed()) is not None:
            target.write_list(listed)

    def _copy_shard(self, shard: int, pieces: ThreadPoolExecutor) -> None:
        final = self._path(shard)
        file = final.with_name(final.name + ".partial")
        try:
            self._fetch(self.cache.open_shard(shard), file, pieces)
        except CutShortError as error:
            raise damaged_shard(self.cache, shard, "it is cut short") from error
        layout, skipped = self.cache.layout, self.cache.manifest.skipped_rows
        receipt = None if self.cache.digests is None else Receipt(receipts_of(self.target), shard, self._identity)
        found = check_shard(ShardCheck(shard, file, receipt, layout, skipped & frozenset(layout.rows(shard))))
        if found.damage is not None:
            file.unlink()
            raise damaged_shard(self.cache, shard, found.damage.reason)
        if receipt is not None and found.checksums is not None and not found.listed:
            receipt.write_list(found.checksums)
        publish(file, final)

    def _fetch(self, source: ByteSource, file: Path, pieces: ThreadPoolExecutor) -> None:
        with open(file, "wb") as out:

            def fetch(offset: int) -> int:
                piece = np.empty(min(PIECE_BYTES, source.size - offset), dtype=np.uint8)
                source.read([(offset, piece.nbytes, [piece])])
                written = 0
                while written < piece.nbytes:
                    written += os.pwrite(out.fileno(), piece[written:].data, offset + written)
                return piece.nbytes

            under_way = [pieces.submit(fetch, offset) for offset in range(0, source.size, PIECE_BYTES)]
            try:
                for piece in under_way:
                    self._advance(piece.result())
            finally:  # none may write to the file once it is closed
                for piece in under_way:
                    piece.cancel()
                wait(under_way)
            os.fsync(out.fileno())

    def _advance(self, count: int) -> None:
        with self._guard:
            self._left -= count
            self.progress(1 - self._left / sum(self.sizes.values()))

    def _path(self, shard: int) -> LocalPath:
        return shard_path(self.partial, self.cache.manifest.fields["tap"], shard)

    def _done(self, shard: int) -> bool:
        """Whether an earlier run copied and checked it."""
        return self._path(shard).exists() and self._path(shard).stat().st_size == self.sizes[shard]

    def _require_room(self) -> None:
        free = shutil.disk_usage(receipts_of(self.target)).free
        if self._left > free:
            raise UserError(
                f"the copy of {str(self.cache.path)!r} needs {readable_bytes(self._left)} more, but "
                f"{str(self.target.parent)!r} has {readable_bytes(free)} free: {self._otherwise}."
            )


def damaged_shard(cache: ActivationCache, shard: int, reason: str) -> UserError:
    """Give the refusal to copy a cache of which a shard is damaged."""
    return UserError(f"shard {shard} of {str(cache.path)!r} is damaged ({reason}): {REPAIR}.")


def metadata_contents(cache: ActivationCache) -> dict[str, bytes]:
    """Read the metadata files of a cache, each from its store or else from the copy beside it; the root's comes last.

    Raises:
        UserError: if one is not what it was when the cache was opened.
    """
    metadata = cache.metadata
    if cache.digests is None:
        return {name: (metadata.store / name).read() for name in metadata.names()}
    contents = {name: _intact(name, digest, metadata) for name, digest in cache.digests.items()}
    if lost := [name for name, content in contents.items() if content is None]:
        if metadata.digests() != cache.digests:
            raise UserError(f"{str(cache.path)!r} is being changed: run the same command again.")
        raise UserError(f"{lost[0]} of {str(cache.path)!r} is damaged: {REPAIR}.")
    return {name: content for name, content in contents.items() if content is not None}


def _intact(name: str, digest: str, metadata: MetadataFiles) -> bytes | None:
    for folder in (metadata.store, metadata.copy):
        with suppress(OSError, UnreadableError):
            if sha256(content := (folder / name).read()) == digest:
                return content
    return None


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)


def shard_digests(cache: ActivationCache) -> list[str]:
    """Read what the receipts say of each shard: caches that agree in it hold the same bytes.

    Raises:
        DamagedShardError: if a receipt is missing or damaged.
    """
    identity = cache.manifest.identity
    with ThreadPoolExecutor(REMOTE_PIECES, "receipt") as threads:
        receipts = [Receipt(cache.receipts, shard, identity) for shard in range(cache.layout.shards)]
        return list(threads.map(lambda receipt: receipt.read()["digest"], receipts))
