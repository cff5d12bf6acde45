"""Write a cache shard by shard, so that no interruption can leave a wrong or lost value behind.

A shard is done when its receipt stands beside the store. The order that makes this true: bytes to a temporary name,
fsync, rename, fsync of the folder; then the receipt in the same way. A kill before the receipt costs that shard only,
and the next run writes it again from the start.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.files import write_json
from losa_cache.cache.home import remember
from losa_cache.cache.identity import differences
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.shard import ShardWriter
from losa_cache.cache.store import ActivationCache, create_store, finish_store, open_cache, shard_path
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
            receipt: dict[str, Any] = json.loads(self.receipt.read_text())
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
        content = {"identity": self.identity, "shard": self.shard, "bytes": writer.size, "crc32c": writer.checksum}
        write_json(self.receipt, content | notes)


class CacheWriter:
    """Create or resume a cache. One process at a time owns it, by a lock that dies with the process.

    Args:
        path: the ``.zarr`` folder to be.
        manifest: what it holds.
        layout: its plan; a resumed store keeps the one it has.
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
        layout: Layout,
        *,
        labels: NDArray[np.int64],
        ids: list[str],
        tail: dict[str, Tensor],
    ) -> None:
        self.path, self.manifest, self.layout = path, manifest, layout
        self.receipts = path.with_name(path.name + ".receipts")
        self._labels, self._ids = labels, ids
        self._open: tuple[ShardUnit, ShardWriter, dict[str, Any]] | None = None
        self._next = 0
        try:
            self.receipts.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.receipts / "lock", path)
            try:
                self._prepare(tail)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise UserError(
                f"cache {str(path)!r} cannot be written ({error.strerror}): choose another --out."
            ) from error

    def _prepare(self, tail: dict[str, Tensor]) -> None:
        if not self.path.exists():
            self._require_room()
            create_store(self.path, self.manifest, self.layout, labels=self._labels, ids=self._ids, tail=tail)
            return
        if not (self.path / "zarr.json").exists():
            raise UserError(f"{str(self.path)!r} exists and is no cache: choose another --out.")
        existing = open_cache(self.path, incomplete=True)
        _require_same(existing, self.manifest)
        self.manifest, self.layout = existing.manifest, existing.layout
        for leftover in self.unit(0).path.parent.glob("*.partial"):
            leftover.unlink()
        self._require_room()

    def unit(self, shard: int) -> ShardUnit:
        """Name the files of a shard."""
        path = shard_path(self.path, self.manifest.fields["tap"], shard)
        return ShardUnit(shard, path, self.receipts / f"{shard:06d}.json", self.manifest.identity)

    def missing(self) -> list[int]:
        """List the shards that are not done."""
        return [shard for shard in range(self.layout.shards) if not self.unit(shard).done()]

    def append(self, row: int, sample: NDArray[Any] | None, reason: str = "", **counts: int) -> None:
        """Write the next row of a missing shard; its last row publishes the shard.

        Args:
            row: row of the array. All rows of a shard come in order, shard after shard.
            sample: stored values ``(layers, tokens, width)``, or None for a sample that did not decode.
            reason: why it did not.
            counts: to add to the shard's receipt (``overflowed``, ``non_finite``).

        Raises:
            ValueError: for a row out of order: after a failed write, nothing may follow that would close the gap.
        """
        shard, place = divmod(row, self.layout.shard_samples)
        if (place and (self._open is None or row != self._next)) or (not place and self._open is not None):
            raise ValueError(f"row {row} is out of order.")
        if self._open is None:
            unit = self.unit(shard)
            self._open = unit, unit.begin(self.layout), {"overflowed": 0, "non_finite": 0, "skipped": []}
        unit, writer, notes = self._open
        if sample is None:
            notes["skipped"].append({"row": row, "id": self._ids[row], "reason": reason})
        else:
            writer.append(place, sample)
        for name, count in counts.items():
            notes[name] += count
        self._next = row + 1
        if row == self.layout.rows(shard)[-1]:
            unit.complete(writer, notes)
            self._open = None

    def finish(self) -> ActivationCache:
        """Mark the cache complete and open it.

        Raises:
            UserError: if every sample was skipped.
        """
        receipts = [self.unit(shard).done() for shard in range(self.layout.shards)]
        assert all(receipts), "finish() before the last shard"
        done: Iterable[dict[str, Any]] = [receipt for receipt in receipts if receipt]
        skipped = [entry for receipt in done for entry in receipt["skipped"]]
        if len(skipped) == self.layout.samples:
            raise UserError(f"none of the {len(skipped)} images could be decoded (first: {skipped[0]['id']!r}).")
        labels = self._labels.copy()
        labels[[entry["row"] for entry in skipped]] = -1
        counts = {name: sum(receipt[name] for receipt in done) for name in ("overflowed", "non_finite")}
        finish_store(self.path, self.manifest.completed(skipped=skipped, **counts), labels)
        remember(self.path)
        return open_cache(self.path)

    def close(self) -> None:
        """Leave the cache as it is, finished or not, for the next run."""
        if self._open is not None:
            self._open[1].close()
        _held.discard(self._lock)
        os.close(self._lock)

    def _require_room(self) -> None:
        needed = sum(self.layout.shard_bytes(shard) for shard in self.missing())
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
