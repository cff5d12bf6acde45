"""Write a cache shard by shard, so that no interruption can leave a wrong or lost value behind.

A shard is done when its receipt stands beside the store. The order that makes this true: bytes to a temporary name,
fsync, rename, fsync of the folder; then the list of its checksums and the receipt in the same way. A kill before the
receipt costs that shard only, and the next run writes it again from the start.

A run that finds shards done compares the checksums behind their chunks with their receipts, so that one that was put in
the place of another is written again, too.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.core import ROOT
from losa_cache.cache.hold import hold
from losa_cache.cache.identity import differences
from losa_cache.cache.layout import Layout
from losa_cache.cache.location import REQUESTS, Location, open_blob
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding
from losa_cache.cache.receipt import Receipt, ReceiptContent
from losa_cache.cache.shard import PackedSample, ShardReader, ShardWriter
from losa_cache.cache.store import ActivationCache, open_cache, open_with, receipts_of, shard_path
from losa_cache.cache.unit import RemoteUnit, ShardUnit
from losa_cache.errors import UserError
from losa_cache.files import clear
from losa_cache.machine.memory import readable_bytes


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

    unit: ShardUnit | RemoteUnit
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
        path: Location,
        manifest: Manifest,
        fit: Callable[[], tuple[Manifest, Layout, Encoding]],
        *,
        labels: NDArray[np.int64],
        ids: list[str],
        tail: dict[str, Tensor],
    ) -> None:
        self.path, self.manifest = path, manifest
        self._labels, self._ids = labels, ids
        self._damaged: dict[int, set[int]] = {}
        self._open: _OpenShard | None = None
        try:
            self.hold = hold(path)
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
        core = self.hold.core
        if not self._begun():
            self.manifest, self.layout, self.encoding = fit()
            self._require_room()
            scales = self.encoding.constants()
            core.create(self.manifest, self.layout, labels=self._labels, ids=self._ids, tail=tail, scales=scales)
            return
        if core.copied:
            core.repair(self.manifest.identity)
            existing = open_cache(self.path, incomplete=True)
            _require_same(existing, self.manifest)
        else:  # it came without its receipts, or lost the copy: what is there must be what would be written
            require_root(self.path)
            existing = open_with(self.path, lambda: None, incomplete=True)
            _require_same(existing, self.manifest)
            self._require_inputs(existing, tail)
            existing.encoding()  # before its files are vouched for
            core.repair(self.manifest.identity)
        if len(existing.ids) != len(self._ids):
            raise UserError(
                f"{str(self.path)!r} holds {len(existing.ids)} rows, and these samples are {len(self._ids)}: choose "
                "another --out."
            )
        self.manifest, self.layout, self.encoding = existing.manifest, existing.layout, existing.encoding()
        self._sweep()
        with ThreadPoolExecutor(REQUESTS, "settle") as threads:
            list(threads.map(lambda shard: self.unit(shard).settle(self.layout), range(self.layout.shards)))
        self._require_room()

    def _require_inputs(self, existing: ActivationCache, tail: Mapping[str, Tensor]) -> None:
        there, theirs = existing.labels >= 0, existing.tail_tensors()
        wrong = {
            "labels": not np.array_equal(existing.labels[there], self._labels[there]),
            "sample_ids": existing.ids != self._ids,
            "tail": theirs.keys() != tail.keys() or any(not torch.equal(theirs[k], tail[k].cpu()) for k in tail),
        }
        if changed := [name for name, differs in wrong.items() if differs]:
            raise UserError(
                f"{', '.join(changed)} of {str(self.path)!r} are not those of this data set and backbone, and the copy "
                "to put them back from is missing: choose another --out."
            )

    def _begun(self) -> bool:
        assert isinstance(self.path, Path)
        return self.path.exists()

    def _sweep(self) -> None:
        """Remove what a kill left, in the store and in its receipts."""
        assert isinstance(self.path, Path)
        for folder in (self.path, receipts_of(self.path)):
            for leftover in list(folder.rglob("*.partial")):
                clear(leftover)

    def unit(self, shard: int) -> ShardUnit | RemoteUnit:
        """Name the files of a shard."""
        assert isinstance(self.path, Path)
        path = shard_path(self.path, self.manifest.fields["tap"], shard)
        return ShardUnit(path, Receipt(receipts_of(self.path), shard, self.manifest.identity))

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
                self.unit(shard).forget()
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
        done: Iterable[ReceiptContent] = [receipt for receipt in receipts if receipt]
        skipped = [entry for receipt in done for entry in receipt["skipped"]]
        labels = self._labels.copy()
        labels[[entry["row"] for entry in skipped]] = -1
        counts = {
            "overflowed": sum(receipt["overflowed"] for receipt in done),
            "non_finite": sum(receipt["non_finite"] for receipt in done),
        }
        try:
            self.hold.core.finish(self.manifest.completed(skipped=skipped, **counts), labels)
        except OSError as error:
            raise UserError(
                f"cache {str(self.path)!r} cannot be marked complete ({error.strerror}): its shards are kept; make "
                "room and run the same command again."
            ) from error
        return open_cache(self.path)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cache as it is, finished or not, for the next run."""
        if self._open is not None:
            self._open.writer.close()
        self.hold.close()

    def _begin(self, shard: int) -> "_OpenShard":
        unit = self.unit(shard)
        rows, old = self.layout.rows(shard), None
        notes: dict[str, Any] = {"overflowed": 0, "non_finite": 0, "skipped": []}
        if shard in self._damaged and (receipt := unit.done()):
            notes |= {name: value for name, value in receipt.items() if name in notes}
            old = ShardReader(open_blob(unit.path), self.layout)
        last = max(self._damaged.get(shard, rows[-1:]))
        return _OpenShard(unit, unit.begin(self.layout), notes, old, rows.start, last)

    def _require_room(self) -> None:
        plain = sum(self.layout.shard_bytes(shard) for shard in self.missing())
        needed = plain * (self.manifest.encoding["compressed"] or 1)
        free = shutil.disk_usage(self.hold.disk).free
        if needed > free:
            raise UserError(
                f"the cache needs {readable_bytes(needed)} more, but its disk has {readable_bytes(free)} free: choose "
                f"fewer --layers, a smaller --limit or another --out than {str(self.path)!r}."
            )


def require_root(path: Location) -> None:
    """Refuse what is there and is no cache.

    Raises:
        UserError: if so.
    """
    if not (path / ROOT).is_file():
        raise UserError(f"{str(path)!r} exists and is no cache: choose another --out.")


def _require_same(existing: ActivationCache, manifest: Manifest) -> None:
    if existing.manifest.identity != manifest.identity:
        named = "; ".join(differences(manifest.fields, existing.manifest.fields))
        older = manifest.upright and "orientation" not in existing.manifest.fields
        raise UserError(
            f"{str(existing.path)!r} holds another cache: it differs in {named}. "
            "Choose another --out, or the options it was made with"
            f"{' (--ignore-orientation, as all older caches)' if older else ''}."
        )
