"""Which files a cache was computed from, by their content: recorded while they are extracted, compared before reuse.

The fingerprint of a data set knows names and sizes at most. So each shard has a list beside its receipt: of every row's
file or archive the size, time stamps and inode, and of its image the sha256 (``docs/protocol.md``, section "Sources").
Whoever reuses or resumes the cache, or computes rows of it again, looks at the files: where size, stamps and inode are
as recorded nothing is read; else the image is hashed, and only its content decides.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.files import sealed, unsealed
from losa_cache.outside import UnreadableError

log = logging.getLogger(__name__)

FOLDER = "sources"
THREADS = 16  # shards whose files are looked at at the same time
_SETTLED = 2_000_000_000  # nanoseconds: a younger stamp would be the same after another change


@dataclass(frozen=True)
class Source:
    """A file as it was read, or an image of an archive.

    Attributes:
        size: of the file or archive, in bytes; -1 of one that cannot be read.
        modified, changed: its mtime and ctime in nanoseconds; a ``changed`` of 0 equals none.
        inode: its number.
        digest: sha256 in hexadecimal, of the file or of the image's bytes alone.
    """

    size: int
    modified: int
    changed: int
    inode: int
    digest: str

    @classmethod
    def of(cls, path: Path, encoded: Callable[[], bytes] | None = None) -> "Source":
        """Read a file, or a part of it: the bytes that ``encoded`` gives."""
        try:
            status = path.stat()
            if encoded is not None:
                digest = hashlib.sha256(encoded()).hexdigest()
            else:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            return cls(-1, 0, 0, 0, "")
        settled = abs(time.time_ns() - status.st_ctime_ns) > _SETTLED
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns if settled else 0, status.st_ino, digest)

    def untouched(self, path: Path) -> bool:
        """Whether the file must be the one that was read, by what the file system says alone."""
        try:
            found = path.stat()
        except (OSError, ValueError):
            return self.size < 0
        stamps = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        return stamps == (self.size, self.modified, self.changed, self.inode)


class Sources:
    """The lists of a cache's files.

    Args:
        path: of the cache.
        layout: of it.
        manifest: of it.
        samples: in its order, of files or archives.
    """

    def __init__(self, path: StorePath, layout: Layout, manifest: Manifest, samples: Samples) -> None:
        self.path, self.layout = path, layout
        self._manifest, self._samples = manifest, samples
        self._rows: dict[int, Source] = {}  # of the shard that is being written

    def _file(self, sample: int) -> Path:
        """Say in which file or archive an image or video lies."""
        file = self._samples.archive if self._samples.encoded is not None else self._samples.file
        assert file is not None
        return file(sample)

    def _source(self, sample: int) -> Source:
        encoded = self._samples.encoded
        return Source.of(self._file(sample), None if encoded is None else lambda: encoded(sample))

    def read(self, rows: Iterable[int], threads: ThreadPoolExecutor) -> None:
        """Hash the files of rows that were just decoded, and so are in memory: to be recorded."""
        samples = {row: row // self._manifest.views for row in rows}
        found = dict(zip(unique := list({*samples.values()}), threads.map(self._source, unique), strict=True))
        self._rows |= {row: found[sample] for row, sample in samples.items()}

    def written(self, row: int) -> None:
        """Record a shard whose last row is about to be written, if all of its rows were read."""
        shard = row // self.layout.shard_samples
        rows = self.layout.rows(shard)
        if row != rows[-1]:
            return
        if all(row in self._rows for row in rows):
            self._write(shard, [self._rows[row] for row in rows])
        self._rows = {row: source for row, source in self._rows.items() if row >= rows.stop}

    def require_unchanged(self, shards: Collection[int], *, renew: bool) -> None:
        """Refuse files that are not those that shards were computed from.

        Args:
            shards: numbers of shards that are done.
            renew: record new time stamps of files that have been hashed: the cache is held by this process.

        Raises:
            UserError: naming the first file that is another.
        """
        with ThreadPoolExecutor(THREADS, "sources") as threads:
            known = list(threads.map(lambda shard: self._require_shard(shard, renew=renew), shards))
        if not all(known):
            log.warning(
                "%r does not record the content of all its files, as caches of older versions do not: that they are "
                "still the same is taken from names and sizes where the data set gives them.",
                str(self.path),
            )

    def _require_shard(self, shard: int, *, renew: bool) -> bool:
        rows = self.layout.rows(shard)
        known = self._read(shard)
        if known is None or len(known) != len(rows):
            return False
        now: dict[int, Source] = {}
        for row, source in zip(rows, known, strict=True):
            sample = row // self._manifest.views
            file = self._file(sample)
            if sample in now or source.untouched(file):
                continue
            now[sample] = self._source(sample)
            if now[sample].digest != source.digest:
                raise UserError(
                    f"{str(self.path)!r} was extracted from other files: {self._samples.ids[sample]!r} "
                    f"({str(file)!r}) has another content now. Choose another --out to extract the files as they are, "
                    "or put the former ones back."
                )
        if now and renew:
            fresh = [now.get(row // self._manifest.views, source) for row, source in zip(rows, known, strict=True)]
            self._write(shard, fresh)
        return True

    def _write(self, shard: int, sources: list[Source]) -> None:
        write_list(self.path, self._manifest.identity, shard, sources)

    def _read(self, shard: int) -> list[Source] | None:
        return read_list(self.path, self._manifest.identity, shard)


def list_path(cache: StorePath, shard: int) -> StorePath:
    """Name the list of a shard's files."""
    return receipts_of(cache) / FOLDER / f"{shard:06d}.json"


def write_list(cache: StorePath, identity: str, shard: int, sources: Sequence[Source]) -> None:
    """Write the list of a shard's files, whole: the file of each row."""
    columns = [list(column) for column in zip(*map(astuple, sources), strict=True)]
    content = {"identity": identity, "shard": shard, **dict(zip(Source.__dataclass_fields__, columns, strict=True))}
    list_path(cache, shard).write(sealed(content))


def read_list(cache: StorePath, identity: str, shard: int) -> list[Source] | None:
    """Read the list of a shard's files; ``None`` if there is none, or it is damaged or of another cache."""
    try:
        content = unsealed(list_path(cache, shard).read(), str(shard))
        if (content["identity"], content["shard"]) != (identity, shard):
            return None
        return [Source(*row) for row in zip(*(content[name] for name in Source.__dataclass_fields__), strict=True)]
    except (OSError, UnreadableError, ValueError, KeyError, TypeError):
        return None
