"""Whether a cache is what was written: its core against the copy, its shards against receipts and checksums."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from losa_cache.cache.core import LIST, Core
from losa_cache.cache.layout import Layout
from losa_cache.cache.location import Location, file_size, open_blob
from losa_cache.cache.shard import DamagedShardError, ShardReader
from losa_cache.cache.shardwise import over_shards
from losa_cache.cache.store import ActivationCache, open_cache, receipt_path, receipts_of
from losa_cache.errors import UserError
from losa_cache.files import read_sealed


@dataclass(frozen=True)
class ShardCheck:
    """All that is needed to check one shard, anywhere.

    Attributes:
        shard: its number.
        path, receipt: its files; without a receipt the digest cannot be checked.
        layout: of the store.
        identity: of the cache.
        skipped: rows that are rightly missing.
    """

    shard: int
    path: Location
    receipt: Location | None
    layout: Layout
    identity: str
    skipped: frozenset[int]


@dataclass(frozen=True)
class ShardDamage:
    """What is wrong with a shard.

    Attributes:
        shard: its number.
        reason: in words.
        rows: damaged rows of the array; ``None`` if nothing in the shard can be trusted.
    """

    shard: int
    reason: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Damage:
    """What is wrong with a cache.

    Attributes:
        files: of the core, and of its copy (below the receipts).
        shards: the damaged ones.
    """

    files: list[str] = field(default_factory=list)
    shards: list[ShardDamage] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files or self.shards)

    def samples(self, cache: ActivationCache) -> list[str]:
        """Name the damaged samples."""
        rows = [
            row
            for damage in self.shards
            for row in (cache.layout.rows(damage.shard) if damage.rows is None else damage.rows)
        ]
        return list(dict.fromkeys(cache.ids[row] for row in rows))


def examine(
    store: Location,
    *,
    shards: Sequence[int] | None = None,
    scheduler: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[ActivationCache, Damage]:
    """Check every byte of a complete cache, or of its core and some shards.

    Args:
        store: the ``.zarr`` folder.
        shards: to check; by default all.
        scheduler, progress: as of :func:`over_shards`.

    Returns:
        the cache, opened from the copy where its own core is damaged, and what is damaged.

    Raises:
        UserError: if it is no complete cache, or has no receipts to be checked against.
    """
    core = Core(store, receipts_of(store))
    if not core.copied:
        open_cache(store)  # says what is wrong if it is no cache
        raise UserError(f"{str(store)!r} has no receipts to be checked against: copy {str(core.receipts)!r} with it.")
    try:
        in_store, in_copy = core.damaged()
    except (OSError, ValueError):
        in_store, in_copy = [], [LIST]
    cache = open_cache(core.copy if in_store else store)
    cache = replace(cache, path=store)
    skipped = cache.manifest.skipped_rows
    checks = [
        ShardCheck(
            shard,
            cache.shard_path(shard).absolute(),
            receipt_path(store.absolute(), shard),
            cache.layout,
            cache.manifest.identity,
            skipped & frozenset(cache.layout.rows(shard)),
        )
        for shard in (range(cache.layout.shards) if shards is None else shards)
    ]
    found = over_shards(check_shard, checks, scheduler=scheduler, progress=progress)
    copied = [f"{core.receipts.name}/{core.copy.name}/{name}" for name in in_copy]
    return cache, Damage(in_store + copied, [damage for damage in found if damage])


def check_shard(check: ShardCheck) -> ShardDamage | None:
    """Check a receipt's seal, a shard's index, every chunk, and the digest of them all, with one sample in memory."""
    try:
        receipt, reader = _open(check)
        damaged, reason, digest = _read_all(check, reader)
    except DamagedShardError as error:
        return ShardDamage(check.shard, str(error))
    if damaged:
        return ShardDamage(check.shard, reason, tuple(damaged))
    if receipt is not None and (digest != receipt["digest"] or file_size(check.path) != receipt["bytes"]):
        return ShardDamage(check.shard, "it is not the shard that its receipt is of")
    return None


def _open(check: ShardCheck) -> tuple[dict[str, Any] | None, ShardReader]:
    try:
        receipt = None if check.receipt is None else read_sealed(check.receipt)
    except (OSError, ValueError) as error:
        raise DamagedShardError("its receipt is missing or damaged") from error
    if receipt is not None and (receipt["identity"] != check.identity or receipt["shard"] != check.shard):
        raise DamagedShardError("its receipt is of another shard")
    try:
        return receipt, ShardReader(open_blob(check.path), check.layout)
    except FileNotFoundError as error:
        raise DamagedShardError("it is missing") from error


def _read_all(check: ShardCheck, reader: ShardReader) -> tuple[list[int], str, str]:
    digest, damaged, reason = hashlib.sha256(), [], ""
    for place, row in enumerate(check.layout.rows(check.shard)):
        if row in check.skipped:
            continue
        try:
            digest.update(reader.stored(place).checksums)
        except DamagedShardError as error:
            damaged.append(row)
            reason = reason or str(error)
    digest.update(reader.raw_index)
    return damaged, reason, digest.hexdigest()
