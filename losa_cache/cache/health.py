"""Check that a cache is what was written: metadata files against their copy, shards against receipts and checksums."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from losa_cache.cache.layout import Layout
from losa_cache.cache.metadata_files import LIST, MetadataFiles
from losa_cache.cache.receipt import CHECKSUMS, FOREIGN, Receipt, list_name
from losa_cache.cache.shard import DamagedShardError, ShardReader
from losa_cache.cache.shard_map import map_shards
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache, open_with
from losa_cache.errors import UserError


@dataclass(frozen=True)
class ShardCheck:
    """Everything that a worker needs to check one shard.

    Attributes:
        path: its file.
        receipt: its receipt and its list of checksums; ``None`` if there is no receipt.
        layout: of the store.
        shard: its number.
        skipped: rows that are missing because their samples were skipped.
    """

    shard: int
    path: StorePath
    receipt: Receipt | None
    layout: Layout
    skipped: frozenset[int]


@dataclass(frozen=True)
class ShardDamage:
    """What is damaged in one shard.

    Attributes:
        shard: its number.
        reason: in words.
        rows: damaged rows of the array; ``None`` if nothing in the shard can be trusted.
    """

    shard: int
    reason: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ShardHealth:
    """What a check of a shard found.

    Attributes:
        damage: what is wrong with it, or ``None``.
        listed: whether its list of checksums is right; ``None`` if it has no list.
        checksums: what the list must hold, if the shard is intact.
    """

    damage: ShardDamage | None
    listed: bool | None = None
    checksums: bytes | None = None


@dataclass(frozen=True)
class Damage:
    """What is wrong with a cache.

    Attributes:
        files: metadata files, those of their copy, and lists of checksums (both below the receipts).
        shards: the damaged ones.
        lists: what the lists of checksums that are damaged or missing must hold, by shard. A cache without any list is
            not damaged: an earlier version wrote it.
    """

    files: list[str] = field(default_factory=list)
    shards: list[ShardDamage] = field(default_factory=list)
    lists: dict[int, bytes] = field(default_factory=dict)

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
    store: StorePath,
    *,
    shards: Sequence[int] | None = None,
    scheduler: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[ActivationCache, Damage]:
    """Check every byte of a complete cache, or only its metadata files and some shards.

    Args:
        store: the ``.zarr`` folder.
        shards: to check; by default all.
        scheduler, progress: as of :func:`map_shards`.

    Returns:
        the cache, and what is damaged. If its own metadata files are damaged, it is opened from their copy.

    Raises:
        UserError: if it is no complete cache, or has no receipts to check it against.
    """
    metadata = MetadataFiles(store, receipts_of(store))
    if not metadata.has_receipts:
        open_cache(store)  # says what is wrong if it is no cache
        raise UserError(
            f"{str(store)!r} has no receipts to be checked against: copy {str(metadata.receipts)!r} with it."
        )
    files: dict[str, str] | None = None
    try:
        in_store, in_copy = metadata.damaged()
        files = metadata.files()
    except (OSError, ValueError):
        in_store, in_copy = [], [LIST]
    cache = replace(open_with(metadata.copy if in_store else store, lambda: files), path=store)
    skipped = cache.manifest.skipped_rows
    checks = [
        ShardCheck(
            shard,
            cache.shard_path(shard),
            Receipt(metadata.receipts, shard, cache.manifest.identity),
            cache.layout,
            skipped.intersection(cache.layout.rows(shard)),
        )
        for shard in (range(cache.layout.shards) if shards is None else shards)
    ]
    found = map_shards(check_shard, checks, scheduler=scheduler, progress=progress)
    have_lists = any(health.listed is not None for health in found)
    lists = {
        check.shard: health.checksums
        for check, health in zip(checks, found, strict=True)
        if health.checksums is not None and not health.listed
    }
    damaged = [f"{metadata.copy.name}/{name}" for name in in_copy]
    damaged += [f"{CHECKSUMS}/{list_name(shard)}" for shard in lists if have_lists]
    return cache, Damage(
        in_store + [f"{metadata.receipts.name}/{name}" for name in damaged],
        [health.damage for health in found if health.damage],
        lists,
    )


def check_shard(check: ShardCheck) -> ShardHealth:
    """Check a receipt's seal, a shard's index, every chunk, the digest of them all and their list.

    Holds one sample in memory.
    """
    try:
        content = None if check.receipt is None else check.receipt.read()
        reader = _open(check)
        listed = None if check.receipt is None else check.receipt.listed()
        right = content is not None and listed is not None and reader.hashes_to(content["digest"], listed)
        if right and listed is not None:
            reader.bind(listed)
        damaged, reason, checksums = _read_all(check, reader)
    except DamagedShardError as error:
        return ShardHealth(ShardDamage(check.shard, str(error)))
    said = None if listed is None else right
    if damaged:
        return ShardHealth(ShardDamage(check.shard, reason, tuple(damaged)), said)
    if content is not None and (
        check.path.size() != content["bytes"] or not reader.hashes_to(content["digest"], checksums)
    ):
        return ShardHealth(ShardDamage(check.shard, FOREIGN), said)
    return ShardHealth(None, said, checksums)


def _open(check: ShardCheck) -> ShardReader:
    try:
        return ShardReader(check.path.open_bytes(), check.layout)
    except FileNotFoundError as error:
        raise DamagedShardError("it is missing") from error
    except OSError as error:
        raise DamagedShardError(f"it cannot be read: {error.strerror}") from error


def _read_all(check: ShardCheck, reader: ShardReader) -> tuple[list[int], str, bytes]:
    checksums, damaged, reason = bytearray(), [], ""
    for place, row in enumerate(check.layout.rows(check.shard)):
        if row in check.skipped:
            continue
        try:
            checksums += reader.stored(place).checksums
        except DamagedShardError as error:
            damaged.append(row)
            reason = reason or str(error)
    return damaged, reason, bytes(checksums)
