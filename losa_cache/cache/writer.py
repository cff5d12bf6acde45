"""Write a cache shard by shard, so that no interruption can leave a wrong or lost value behind.

A shard is done when its receipt stands beside the store. The order that makes this true: bytes to a temporary name,
fsync, rename, fsync of the folder; then the receipt in the same way. A kill before the receipt costs that shard only,
and the next run writes it again from the start.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.blob import FileBlob
from losa_cache.cache.core import LocalCore
from losa_cache.cache.files import read_sealed, write_sealed
from losa_cache.cache.home import remember
from losa_cache.cache.identity import differences
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding
from losa_cache.cache.shard import PackedSample, ShardReader, ShardWriter
from losa_cache.cache.store import ActivationCache, open_cache, receipt_path, receipts_of, shard_path
from losa_cache.errors import UserError


@dataclass(frozen=True)
class ShardUnit:
    """The two files of one shard: its bytes in the store, its receipt beside it."""

    shard: int
    path: Path
    receipt: Path
    identity: str

    def done(self) -> dict[str, Any] | None:
        """Return the receipt if the shard is there, whole and of this identity."""
        try:
            receipt = read_sealed(self.receipt)
            whole = receipt["identity"] == self.identity and self.path.stat().st_size == receipt["bytes"]
        except (OSError, ValueError, KeyError):
            return None
        return receipt if whole else None

    def begin(self, layout: Layout) -> ShardWriter:
        """Forget what an earlier run left of the shard and start it."""
        self.receipt.unlink(missing_ok=True)
        return ShardWriter(self.path, layout)

    def complete(self, writer: ShardWriter, notes: dict[str, Any]) -> None:
        """Publish the bytes, then the receipt."""
        writer.commit()
        content = {"identity": self.identity, "shard": self.shard, "bytes": writer.size, "digest": writer.digest}
        write_sealed(self.receipt, content | notes)


@dataclass
class _OpenShard:
    """A shard that is being written.

    Attributes:
        unit: its files.
        writer: of its bytes.
        notes: for its receipt.
        old: its damaged file, whose other rows are taken over, and which has counted in ``notes`` what there is.
        next: the first row that is not written yet.
        last: the last row that must be given; what follows is in the old file.
    """

    unit: ShardUnit
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
    """Create or resume a cache. One process at a time owns it, by a lock that dies with the process.

    Args:
        path: the ``.zarr`` folder to be.
        manifest: what it holds.
        fit: gives manifest, layout and encoding of a new store; a resumed one keeps what it has.
        labels, ids: of its rows.
        tail: tensors of the frozen tail.

    Raises:
        UserError: if another process writes it, it holds another identity, its folder cannot be written, or the disk
            has no room for what is missing.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        fit: Callable[[], tuple[Manifest, Layout, Encoding]],
        *,
        labels: NDArray[np.int64],
        ids: list[str],
        tail: dict[str, Tensor],
    ) -> None:
        self.path, self.manifest = path, manifest
        self.receipts = receipts_of(path)
        self.core = LocalCore(path, self.receipts)
        self._labels, self._ids = labels, ids
        self._damaged: dict[int, set[int]] = {}
        self._open: _OpenShard | None = None
        try:
            self.receipts.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.receipts / "lock", path)
            try:
                self._prepare(fit, tail)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise UserError(
                f"cache {str(path)!r} cannot be written ({error.strerror}): choose another --out."
            ) from error

    def _prepare(self, fit: Callable[[], tuple[Manifest, Layout, Encoding]], tail: dict[str, Tensor]) -> None:
        if not self.path.exists():
            self.manifest, self.layout, self.encoding = fit()
            self._require_room()
            scales = self.encoding.constants()
            self.core.create(self.manifest, self.layout, labels=self._labels, ids=self._ids, tail=tail, scales=scales)
            return
        copied = self.core.copied
        if copied:
            self.core.repair()
        elif not (self.path / "zarr.json").exists():
            raise UserError(f"{str(self.path)!r} exists and is no cache: choose another --out.")
        existing = open_cache(self.path, incomplete=True)
        _require_same(existing, self.manifest)
        if not copied:
            self.core.repair()
        self.manifest, self.layout, self.encoding = existing.manifest, existing.layout, existing.encoding()
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()
        self._require_room()

    def unit(self, shard: int) -> ShardUnit:
        """Name the files of a shard."""
        path = shard_path(self.path, self.manifest.fields["tap"], shard)
        return ShardUnit(shard, path, receipt_path(self.path, shard), self.manifest.identity)

    def missing(self) -> list[int]:
        """List the shards that are not done."""
        return [shard for shard in range(self.layout.shards) if not self.unit(shard).done()]

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
            if rows is None or self.unit(shard).done() is None:
                self.unit(shard).receipt.unlink(missing_ok=True)
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
        if current.unit.shard != shard:
            raise ValueError(f"row {row} is out of order.")
        current.take_over(row)
        current.put(row, sample, {"row": row, "id": self._ids[row], "reason": reason}, counts)
        if row == current.last:
            current.take_over(self.layout.rows(shard).stop)
            current.unit.complete(current.writer, current.notes)
            self._damaged.pop(shard, None)
            self._open = None

    def finish(self) -> ActivationCache:
        """Mark the cache complete and open it."""
        receipts = [self.unit(shard).done() for shard in range(self.layout.shards)]
        assert all(receipts), "finish() before the last shard"
        done: Iterable[dict[str, Any]] = [receipt for receipt in receipts if receipt]
        skipped = [entry for receipt in done for entry in receipt["skipped"]]
        labels = self._labels.copy()
        labels[[entry["row"] for entry in skipped]] = -1
        counts = {name: sum(receipt[name] for receipt in done) for name in ("overflowed", "non_finite")}
        self.core.finish(self.manifest.completed(skipped=skipped, **counts), labels)
        remember(self.path)
        return open_cache(self.path)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cache as it is, finished or not, for the next run."""
        if self._open is not None:
            self._open.writer.close()
        _unlock(self._lock)

    def _begin(self, shard: int) -> "_OpenShard":
        unit = self.unit(shard)
        rows, old = self.layout.rows(shard), None
        notes: dict[str, Any] = {"overflowed": 0, "non_finite": 0, "skipped": []}
        if shard in self._damaged and (receipt := unit.done()):
            notes, old = {name: receipt[name] for name in notes}, ShardReader(FileBlob(unit.path), self.layout)
        last = max(self._damaged.get(shard, rows[-1:]))
        return _OpenShard(unit, unit.begin(self.layout), notes, old, rows.start, last)

    def _require_room(self) -> None:
        plain = sum(self.layout.shard_bytes(shard) for shard in self.missing())
        needed = plain * (self.manifest.encoding["compressed"] or 1)
        free = shutil.disk_usage(self.receipts).free
        if needed > free:
            raise UserError(
                f"the cache needs {needed / 1e9:.1f} GB more, but its disk has {free / 1e9:.1f} GB free: choose fewer "
                f"--layers, a smaller --limit or another --out than {str(self.path)!r}."
            )


_held: set[int] = set()


def _let_go_in_child() -> None:
    """Close locks in a forked decoding process, which may outlive its parent for a few seconds."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Own a store for a while.

    Raises:
        UserError: if another process writes it.
    """
    handle = _lock(receipts_of(store) / "lock", store)
    try:
        yield
    finally:
        _unlock(handle)


def _unlock(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _lock(file: Path, store: Path) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"another extraction is writing {str(store)!r}: wait for it, or choose another --out."
        ) from error
    _held.add(handle)
    return handle


def _require_same(existing: ActivationCache, manifest: Manifest) -> None:
    if existing.manifest.identity != manifest.identity:
        named = "; ".join(differences(manifest.fields, existing.manifest.fields))
        raise UserError(
            f"{str(existing.path)!r} holds another cache: it differs in {named}. "
            "Choose another --out, or the options it was made with."
        )
