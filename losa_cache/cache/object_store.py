"""Stores of whole objects, which have names and no folders: what all of them share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import numpy as np

from losa_cache.cache.byte_source import CutShortError, Range, merged
from losa_cache.cache.storage import StorePath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from losa_cache.cache.object_lock import ObjectLock


@dataclass(frozen=True)
class ObjectPath(StorePath):
    """A place in an object store.

    A subclass implements ``parse``, ``scan``, ``size``, ``read``, :meth:`read_ranges`, ``write``, :meth:`create`,
    :meth:`upload` and ``unlink``. Shards are written in a folder below ``$LOSA_CACHE_HOME`` and uploaded whole. An
    object beside the store says who writes it (:class:`losa_cache.cache.object_lock.ObjectLock`).

    Attributes:
        root: URL of the folder that holds the cache.
        key: name below it, with ``/`` between its parts.
    """

    root: str
    key: str

    def __str__(self) -> str:
        return f"{self.root}/{quote(self.key, safe='/-_.~+=@:,')}"

    def __truediv__(self, name: str) -> Self:
        return replace(self, key=f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition("/")[2]

    def with_name(self, name: str) -> Self:
        """Give a neighbour."""
        return replace(self, key=self.key[: len(self.key) - len(self.name)] + name)

    def resolve(self) -> Self:
        """Return self: a URL is absolute."""
        return self

    def names(self) -> dict[str, int]:
        """List everything below, as ``scan`` gives it."""
        return dict(self.scan())

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def is_folder(self, *files: str) -> bool:
        """Whether any of these objects is there."""
        return any((self / name).is_file() for name in files)

    @abstractmethod
    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> Sequence[Any]:
        """Read parts of the object: a buffer for each.

        Args:
            starts, lengths: of the parts, all within the object.
        """

    @abstractmethod
    def upload(self, file: Path) -> None:
        """Write an object from a file: it appears whole or not at all."""

    def open_bytes(self, *, direct: bool = False) -> "ObjectBytes":
        """Open the object; ``direct`` has no effect, because there is no page cache."""
        return ObjectBytes(self)

    def lock(self, *, shared: bool = False) -> "ObjectLock":
        """Take the right to write a cache here."""
        from losa_cache.cache.object_lock import ObjectLock  # only writers need Zarr

        return ObjectLock(self, shared=shared)


class ObjectBytes:
    """The bytes of an object, read by requests for parts of it; many threads send requests at the same time.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if the server fails.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.name = path.name
        self.size = path.size()
        self._path = path

    def read(self, ranges: Sequence[Range]) -> None:
        """Fill the buffers as the contract says. Ranges that are at most 1 MiB apart are read by one request.

        Raises:
            UserError: if the server fails, or does not serve parts.
        """
        joined = list(merged(ranges))
        starts, lengths = [offset for offset, _, _ in joined], [length for _, length, _ in joined]
        if any(start + length > self.size for start, length in zip(starts, lengths, strict=True)):
            raise CutShortError  # a server would refuse the request, or give less
        parts = self._path.read_ranges(starts, lengths)
        for part, (_, length, buffers) in zip(parts, joined, strict=True):
            given = np.frombuffer(memoryview(part), dtype=np.uint8)
            if given.nbytes != length:
                raise CutShortError
            at = 0
            for buffer in buffers:
                buffer[:] = given[at : at + buffer.nbytes]
                at += buffer.nbytes

    def expect(self, ranges: "Iterable[tuple[int, int]]") -> None:
        """Do nothing: many threads read at the same time anyway."""
