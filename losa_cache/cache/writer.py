"""Write a cache shard by shard, so that no interruption can leave a wrong or lost value behind.

A shard is done when its receipt stands beside the store. The order that makes this true: bytes to a temporary name,
fsync, rename, fsync of the folder; then the list of its checksums and the receipt in the same way. A kill before the
receipt costs that shard only, and the next run writes it again from the start.

A run that finds shards done compares the checksums behind their chunks with their receipts, so that one that was put in
the place of another is written again, too.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.claims import Claims
from losa_cache.cache.identity import differences
from losa_cache.cache.layout import Layout
from losa_cache.cache.location import REQUESTS, Location, locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.metadata_files import ROOT
from losa_cache.cache.precision import Encoding
from losa_cache.cache.receipt import Receipt, ReceiptContent
from losa_cache.cache.shard import PackedSample, ShardReader, ShardWriter
from losa_cache.cache.shard_commit import ShardCommit
from losa_cache.cache.storage import StorePath, WriterLock, receipts_of, shard_path
from losa_cache.cache.store import ActivationCache, open_cache, open_with
from losa_cache.errors import UserError
from losa_cache.files import CHANGED, reason, remedy


@dataclass
class _OpenShard:
    """A shard that is being written.

    Attributes:
        commit: its files.
        writer: of its bytes.
        notes: for its receipt.
        old: its damaged file, whose other rows are taken over, and which has counted in ``notes`` what there is.
        next: the first row that is not written yet.
        last: the last row that must be given; what follows is in the old file.
    """

    commit: ShardCommit
    writer: ShardWriter
    notes: dict[str, Any]
    old: ShardReader | None
    next: int
    last: int

    def put(self, row: int, sample: PackedSample | None, skipped: dict[str, Any], counts: Mapping[str, int]) -> None:
        """Write a row, or note why it is skipped."""
        if sample is not None:
            self.writer.append(self._place(row), sample)
        if self.old is None:
            self.notes["skipped"] += [] if sample is not None else [skipped]
            for name, count in counts.items():
                self.notes[name] += count
        self.next = row + 1

    def take_over(self, stop: int) -> None:
        """Copy the rows before ``stop`` that are not written yet from the old file.

        Raises:
            ValueError: if there is none: after a failed write, nothing may follow that would close the gap.
        """
        if stop != self.next and self.old is None:
            raise ValueError(f"row {stop} is out of order.")
        for row in range(self.next, stop):
            assert self.old is not None
            if not self.old.absent(self._place(row)):
                self.writer.append(self._place(row), self.old.stored(self._place(row)))
        self.next = stop

    def _place(self, row: int) -> int:
        return row % self.writer.layout.shard_samples


class CacheWriter:
    """Write the shards of a cache that this process has the lock of; :meth:`create` or :meth:`resume` gives one.

    Attributes:
        lock: the right to write it.
        path: the ``.zarr`` folder.
        manifest, layout, encoding: of the cache.
        alone: whether no other process wrote it when this one began.
    """

    def __init__(
        self,
        lock: WriterLock,
        manifest: Manifest,
        layout: Layout,
        encoding: Encoding,
        *,
        labels: NDArray[np.int64],
        ids: Sequence[str],
    ) -> None:
        self.path, self.manifest, self.layout, self.encoding = lock.path, manifest, layout, encoding
        self.lock, self._labels, self._ids = lock, labels, ids
        self.alone = True
        self._damaged: dict[int, set[int]] = {}
        self._open: _OpenShard | None = None

    @classmethod
    def create(
        cls,
        lock: WriterLock,
        manifest: Manifest,
        layout: Layout,
        encoding: Encoding,
        *,
        labels: NDArray[np.int64],
        ids: Sequence[str],
        tail: dict[str, Tensor],
    ) -> "CacheWriter":
        """Create a cache without shards.

        Args:
            lock: of a place where nothing is yet.
            manifest: what the cache holds.
            layout: its chunks and shards.
            encoding: how its values become bytes.
            labels, ids: of its rows.
            tail: tensors of the frozen tail.

        Raises:
            UserError: if the folder cannot be written, or the disk has no room for the cache.
        """
        writer = cls(lock, manifest, layout, encoding, labels=labels, ids=ids)
        with saying_unwritable(lock.path):
            writer._require_space()
            scales = encoding.constants()
            lock.metadata.create(manifest, layout, labels=labels, ids=ids, tail=tail, scales=scales)
        return writer

    @classmethod
    def resume(
        cls,
        lock: WriterLock,
        manifest: Manifest,
        *,
        labels: NDArray[np.int64],
        ids: Sequence[str],
        tail: dict[str, Tensor],
        alone: bool = True,
    ) -> "CacheWriter":
        """Open a cache, finished or not, to go on with it. It keeps the layout and encoding that it has.

        Args:
            lock: of the cache.
            manifest: what it must hold.
            labels, ids, tail: as of :meth:`create`.
            alone: whether no other process writes it now: then what a killed one left is removed, and shards that are
                done are compared with their receipts.

        Raises:
            UserError: if it holds something else, cannot be written, or the disk has no room for what is missing.
        """
        with saying_unwritable(lock.path):
            existing = _existing(lock, manifest, labels=labels, ids=ids, tail=tail)
            encoding = existing.encoding()
            writer = cls(lock, existing.manifest, existing.layout, encoding, labels=labels, ids=ids)
            writer.alone = alone
            if alone:
                writer._settle()
        return writer

    def _settle(self) -> None:
        self.lock.require_turn()
        self.lock.sweep()
        with ThreadPoolExecutor(REQUESTS, "settle") as threads:
            list(threads.map(lambda shard: self.commit(shard).settle(self.layout), range(self.layout.shards)))
        self._require_space()

    def commit(self, shard: int) -> ShardCommit:
        """Name the files of a shard."""
        path = shard_path(self.path, self.manifest.fields["tap"], shard)
        return self.lock.commit(path, Receipt(receipts_of(self.path), shard, self.manifest.identity))

    @property
    def claims(self) -> Claims | None:
        """The claims of this process; ``None``: it writes the cache alone."""
        return self.lock.claims

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """List the shards that are not done: of all of them, or among some."""
        shards = range(self.layout.shards) if among is None else list(among)
        return [shard for shard, receipt in zip(shards, self._receipts(shards), strict=True) if receipt is None]

    def wanted(self) -> list[int]:
        """List the rows to write: those of missing shards, and damaged ones."""
        missing = set(self.missing())
        return [
            row
            for shard in range(self.layout.shards)
            for row in (self.layout.rows(shard) if shard in missing else sorted(self._damaged.get(shard, ())))
        ]

    def forget(self, damage: Mapping[int, Collection[int] | None]) -> None:
        """Have damaged rows written again.

        Args:
            damage: by shard its damaged rows, or ``None`` where the whole shard is lost. The other rows of a shard are
                taken over from its file.
        """
        for shard, rows in damage.items():
            if rows is None or self.commit(shard).done() is None:
                self.commit(shard).forget()
            else:
                self._damaged[shard] = set(rows)

    def append(self, row: int, sample: PackedSample | None, reason: str = "", **counts: int) -> None:
        """Write the next of the :meth:`wanted` rows; the last one of a shard publishes it.

        Args:
            row: row of the array.
            sample: its chunks, or None for a sample that did not decode.
            reason: why it did not.
            counts: to add to the shard's receipt (``overflowed``, ``non_finite``).

        Raises:
            ValueError: for a row out of order: after a failed write, nothing may follow that would close the gap.
        """
        shard = row // self.layout.shard_samples
        if self._open is None:
            self._open = self._begin(shard)
        current = self._open
        if current.commit.shard != shard:
            raise ValueError(f"row {row} is out of order.")
        current.take_over(row)
        current.put(row, sample, {"row": row, "id": self._ids[row], "reason": reason}, counts)
        if row == current.last:
            current.take_over(self.layout.rows(shard).stop)
            current.commit.complete(current.writer, current.notes)
            self._damaged.pop(shard, None)
            self._open = None

    def finish(self) -> ActivationCache:
        """Mark the cache complete, once all of its shards are there, and open it.

        Nothing is written if it already says what the receipts say: of several processes, in a turn each, the first
        writes. A cache that is complete may say something else, if shards of it were lost and written again.
        """
        self.lock.wait()
        there = open_cache(self.path, incomplete=True)
        manifest, labels = self._completed(there.manifest)
        if there.manifest != manifest or not np.array_equal(there.labels, labels):
            self._mark_complete(manifest, labels)
        if self.claims is not None:
            self.lock.require_turn()
            self.lock.sweep()
            self.claims.clear()
        return open_cache(self.path)

    def _completed(self, manifest: Manifest) -> tuple[Manifest, NDArray[np.int64]]:
        """Give manifest and labels as the receipts of all shards say."""
        receipts = self._receipts(range(self.layout.shards))
        assert all(receipts), "finish() before the last shard"
        done: Iterable[ReceiptContent] = [receipt for receipt in receipts if receipt]
        skipped = [entry for receipt in done for entry in receipt["skipped"]]
        labels = self._labels.copy()
        labels[[entry["row"] for entry in skipped]] = -1
        counts = {
            "overflowed": sum(receipt["overflowed"] for receipt in done),
            "non_finite": sum(receipt["non_finite"] for receipt in done),
        }
        return manifest.completed(skipped=skipped, **counts), labels

    def _mark_complete(self, manifest: Manifest, labels: NDArray[np.int64]) -> None:
        try:
            self.lock.metadata.finish(manifest, labels)
        except OSError as error:
            raise UserError(
                f"cache {str(self.path)!r} cannot be marked complete ({error.strerror}): its shards are kept; "
                f"{remedy(error)} and run the same command again."
            ) from error

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cache as it is, finished or not, for the next run. The lock stays."""
        if self._open is not None:
            self._open.writer.discard()

    def _begin(self, shard: int) -> "_OpenShard":
        commit = self.commit(shard)
        rows, old = self.layout.rows(shard), None
        notes: dict[str, Any] = {"overflowed": 0, "non_finite": 0, "skipped": []}
        if shard in self._damaged and (receipt := commit.done()):
            notes |= {name: value for name, value in receipt.items() if name in notes}
            old = ShardReader(commit.path.open_bytes(), self.layout)
        last = max(self._damaged.get(shard, rows[-1:]))
        return _OpenShard(commit, commit.begin(self.layout), notes, old, rows.start, last)

    def _receipts(self, shards: Iterable[int]) -> list[ReceiptContent | None]:
        with ThreadPoolExecutor(REQUESTS, "receipt") as threads:
            return list(threads.map(lambda shard: self.commit(shard).done(), shards))

    def _require_space(self) -> None:
        shards = [self.layout.shard_bytes(shard) for shard in self.missing()]
        self.lock.require_space(shards, self.manifest.encoding["compressed"] or 1)


def lock_cache(path: str | Location, *, shared: bool = False) -> WriterLock:
    """Take the right to write the cache at a place; ``shared`` as of ``StorePath.lock``.

    Raises:
        UserError: if another process has it, the place cannot be written, or its store fails.
    """
    place = locate(path)
    with saying_unwritable(place):
        return place.lock(shared=shared)


@contextmanager
def saying_unwritable(path: StorePath) -> Iterator[None]:
    """Say in a sentence that a cache cannot be written.

    Raises:
        UserError: for what the file system refuses.
    """
    try:
        yield
    except OSError as error:
        changed = "another process may have changed the folder: run the same command again, or "
        raise UserError(
            f"cache {str(path)!r} cannot be written ({error.strerror}): {changed if error.errno in CHANGED else ''}"
            "choose another --out."
        ) from error


@contextmanager
def saying_unfinished(path: StorePath) -> Iterator[None]:
    """Say in a sentence that shards of a cache could not be written, and how to go on.

    Raises:
        UserError: for what the file system refuses.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"writing {str(path)!r} failed ({reason(error)}): finished shards are kept; {remedy(error)} and run the "
            "same command again to go on."
        ) from error


def _existing(
    lock: WriterLock, manifest: Manifest, *, labels: NDArray[np.int64], ids: Sequence[str], tail: Mapping[str, Tensor]
) -> ActivationCache:
    """Open the cache to go on with, its metadata files repaired.

    Raises:
        UserError: if it holds something else.
    """
    if lock.metadata.copied:
        lock.metadata.repair(manifest.identity)
        existing = open_cache(lock.path, incomplete=True)
        _require_same(existing, manifest)
    else:  # it came without its receipts, or lost the copy: what is there must be what would be written
        require_root(lock.path)
        existing = open_with(lock.path, lambda: None, incomplete=True)
        _require_same(existing, manifest)
        _require_inputs(existing, labels, ids, tail)
        existing.encoding()  # before its files are vouched for
        lock.metadata.repair(manifest.identity)
    if len(existing.ids) != len(ids):
        raise UserError(
            f"{str(lock.path)!r} holds {len(existing.ids)} rows, and these samples are {len(ids)}: choose another "
            "--out."
        )
    return existing


def _require_inputs(
    existing: ActivationCache, labels: NDArray[np.int64], ids: Sequence[str], tail: Mapping[str, Tensor]
) -> None:
    there, theirs = existing.labels >= 0, existing.tail_tensors()
    wrong = {
        "labels": not np.array_equal(existing.labels[there], labels[there]),
        "sample_ids": existing.ids != ids,
        "tail": theirs.keys() != tail.keys() or any(not torch.equal(theirs[k], tail[k].cpu()) for k in tail),
    }
    if changed := [name for name, differs in wrong.items() if differs]:
        raise UserError(
            f"{', '.join(changed)} of {str(existing.path)!r} are not those of this data set and backbone, and the copy "
            "to restore them from is missing: choose another --out."
        )


def require_root(path: StorePath) -> None:
    """Refuse what is there and is no cache.

    Raises:
        UserError: if so.
    """
    if not (path / ROOT).is_file():
        raise UserError(f"{str(path)!r} exists and is no cache: choose another --out.")


def _require_same(existing: ActivationCache, manifest: Manifest) -> None:
    if existing.manifest.identity != manifest.identity:
        named = "; ".join(differences(manifest.fields, existing.manifest.fields, ("asked for", "in that cache")))
        older = manifest.upright and "orientation" not in existing.manifest.fields
        raise UserError(
            f"{str(existing.path)!r} holds another cache: it differs in {named}. "
            "Choose another --out, or the options it was made with"
            f"{' (--ignore-orientation, as all older caches)' if older else ''}."
        )
