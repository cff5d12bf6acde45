"""The contract of a store: what a cache asks of the place where it lies.

A cache is two folders of files, ``x.zarr`` and ``x.zarr.receipts``. All code that reads or writes a cache goes through
the two classes below and never asks which store it has. ``losa_cache/cache/stores/`` holds one module for each kind of
store; :mod:`losa_cache.cache.object_store` does most of the work for a store of whole objects.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from losa_cache.cache.byte_source import ByteSource
    from losa_cache.cache.claims import Claims
    from losa_cache.cache.metadata_files import WritableMetadata
    from losa_cache.cache.receipt import Receipt
    from losa_cache.cache.shard_commit import ShardCommit


Result = TypeVar("Result")


class StorePath(ABC):
    """A file or a folder in a store.

    An implementation guarantees:

    * **Atomic writes.** :meth:`write` makes a file appear with all of its content or not at all, and replaces an older
      file in one step. A reader finds the old content or the new, never a part. This holds when the process is killed
      at any instruction. What a kill leaves has another name, which ends in ``.partial``, or cannot be seen.
    * **Order.** When :meth:`write` returns, the content is durable and every reader finds it. So nobody finds the
      second of two files without the first. The receipt of a shard relies on this: it is written last.
    * **One writer.** :meth:`lock` gives the right to write to one process at a time, or to several that each write
      shards of their own (:class:`WriterLock`).
    * **Errors.** What is not there is a ``FileNotFoundError``. A server that fails or refuses is a ``UserError`` of one
      sentence without credentials; a file system that does is an ``OSError``.
    * **Names.** ``str`` gives the name that a user can give again. Pickled, a path is its name: another process opens
      the store with the credentials of its own environment. Equal paths have equal names and hashes.
    * **Threads** may share a path.

    A subclass that sets ``schemes`` is found by these (``losa_cache.cache.location.locate``).

    Attributes:
        schemes: URL schemes of this kind of store, without ``://``.
        by_scheme: every class that was imported so far.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    by_scheme: ClassVar[dict[str, type["StorePath"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.by_scheme.update(dict.fromkeys(cls.__dict__.get("schemes", ()), cls))

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self:
        """Give the place for the name of a cache as a user writes it; a place has one name.

        Raises:
            UserError: if it can name no cache.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the path."""

    @abstractmethod
    def __truediv__(self, name: str) -> Self:
        """Give a file or folder below this one; ``name`` may hold several parts."""

    @abstractmethod
    def with_name(self, name: str) -> Self:
        """Give a neighbour."""

    @abstractmethod
    def resolve(self) -> Self:
        """Give the path as any process of this machine can use it: absolute, links followed."""

    @property
    def on_disk(self) -> Path | None:
        """The same place in this machine's file system; ``None`` where it is not there."""
        return None

    @property
    def remote(self) -> bool:
        """Whether a read waits for a server. Then many small reads are fast at the same time, but slow one after the
        other.
        """
        return self.on_disk is None

    @property
    def lists(self) -> bool:
        """Whether the store can say which files it has."""
        return True

    @abstractmethod
    def scan(self) -> Iterator[tuple[str, int]]:
        """Give every file below this folder: its name relative to this, and its bytes. Only where the store ``lists``.

        A folder that is not there has none.
        """

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is a file."""

    @abstractmethod
    def is_folder(self, *files: str) -> bool:
        """Whether there is a folder. A store that has no folders looks for any of these files in it."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of the file.

        Raises:
            FileNotFoundError: if there is none.
        """

    @abstractmethod
    def read(self) -> bytes:
        """Read a small file whole.

        Raises:
            FileNotFoundError: if there is none.
            UnreadableError: if it is no regular file, or cannot be read.
        """

    @abstractmethod
    def open_bytes(self, *, direct: bool = False) -> "ByteSource":
        """Open a shard, to be read at any offset.

        Args:
            direct: past the page cache, where there is one and the store can.

        Raises:
            FileNotFoundError: if there is none.
            DamagedShardError: if it is no regular file, or cannot be opened.
        """

    @abstractmethod
    def write(self, content: bytes) -> None:
        """Write a file whole or not at all. The folder above that of the file must be there, where there are any."""

    @abstractmethod
    def create(self, content: bytes) -> bool:
        """Write a file if there is none of this name, and say whether it was written.

        A store that cannot do this in one step writes it in any case; it gives no shared lock.
        """

    @abstractmethod
    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file.

        Raises:
            FileNotFoundError: if there is none and the store says so, unless ``missing_ok``.
        """

    @abstractmethod
    def lock(self, *, shared: bool = False) -> "WriterLock":
        """Take the right to write the cache at this place.

        Args:
            shared: with other processes that take it so: each writes the shards that it claims (``WriterLock.claims``).

        Raises:
            UserError: if another process has it, the store fails or cannot be shared.
            OSError: if the place cannot be written.
        """


class WriterLock(ABC):
    """The right to write one cache, from ``StorePath.lock`` to :meth:`close`, and how it is written in this store.

    An implementation guarantees:

    * One process at a time has it, or several share it. It dies with its process, or the next process with the same
      ``$LOSA_CACHE_HOME`` takes it over, or the message that refuses it says what to remove.
    * A process that shares it publishes a shard only while it has the shard's claim, and never replaces a finished one.
    * A shard that is given to ``ShardCommit.complete`` becomes visible as a whole; then the list of its checksums; then
      its receipt. A kill at any instruction leaves the shard without a receipt, and it is written again.
    * The metadata files change in the order that ``WritableMetadata`` describes, and only while the turn is this
      process's, if it shares the lock.

    Attributes:
        path: of the cache.
        metadata: its metadata files, to be written.
        disk: a folder on the disk that shards are written to first.
        claims: of this process, if it shares the lock; ``None``: the whole cache is its own.
    """

    path: StorePath
    metadata: "WritableMetadata"
    disk: Path
    claims: "Claims | None" = None

    @abstractmethod
    def begun(self) -> bool:
        """Whether there is anything at this place, a cache or something else."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what a killed writer left."""

    @abstractmethod
    def require_space(self, shards: Sequence[int], ratio: float) -> None:
        """Refuse a disk that is too small for the shards that will be written.

        Args:
            shards: bytes of each missing shard before compression.
            ratio: compressed bytes divided by these.

        Raises:
            UserError: if it is.
        """

    @abstractmethod
    def commit(self, path: StorePath, receipt: "Receipt") -> "ShardCommit":
        """Give the files of one shard, to be written."""

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Do what no other process that shares the lock may do meanwhile (``Claims.in_turn``)."""
        return work() if self.claims is None else self.claims.in_turn(work)

    def require_turn(self) -> None:
        """Make sure that this process may still do what it does in a turn.

        Raises:
            LostTurnError: if it may not.
        """
        if self.claims is not None:
            self.claims.require_turn()

    def wait(self) -> None:  # noqa: B027  (most stores write at once)
        """Wait until every completed shard has arrived in the store.

        Raises:
            UserError: if one could not be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Let others write the cache."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    def with_name(self, name: str) -> Self: ...

    def __truediv__(self, name: str) -> Self: ...


Place = TypeVar("Place", bound=_Named)


def receipts_of(store: Place) -> Place:
    """Folder of the receipts beside a store."""
    return store.with_name(store.name + ".receipts")


def overlap(one: StorePath, other: StorePath) -> bool:
    """Whether two caches, with their receipts, would share a folder, or one would lie in a folder of the other."""
    ours, theirs = ([f"{place.resolve()}/", f"{receipts_of(place.resolve())}/"] for place in (one, other))
    return any(a.startswith(b) or b.startswith(a) for a in ours for b in theirs)


def shard_path(store: Place, tap: str, shard: int) -> Place:
    """File of a shard below a store: Zarr's default chunk keys with ``.`` between the numbers."""
    return store / "activations" / tap / f"c.{shard}.0.0.0"
