"""Which ids have been seen, in 16 bytes each."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FRESH = 2**14
"""Ids that are kept apart until they are sorted in; more of them where many are known."""


class Known:
    """A set of ids that keeps a digest of each (BLAKE2b, 128 bits) in sorted order, and not their text."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype="S16")
        self._fresh: set[bytes] = set()

    def add(self, name: str) -> bool:
        """Add an id, and tell whether it is new."""
        digest = _digest(name)
        if self._has(digest):
            return False
        self._fresh.add(digest)
        if len(self._fresh) > max(FRESH, len(self._sorted) // 8):
            together = np.concatenate([self._sorted, np.array(list(self._fresh), dtype="S16")])
            self._sorted = np.sort(together, kind="stable")
            self._fresh.clear()
        return True

    def add_all(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Add ids, and tell of each whether it is new, as :meth:`add` does of one."""
        digests = np.frombuffer(b"".join(map(_digest, names)), dtype="S16")
        known = np.sort(np.concatenate([self._sorted, np.array(list(self._fresh), dtype="S16")]), kind="stable")
        each, first = np.unique(digests, return_index=True)
        fresh = ~np.isin(each, known, assume_unique=True)
        new = np.zeros(len(digests), dtype=bool)
        new[first[fresh]] = True
        self._sorted = np.sort(np.concatenate([known, each[fresh]]), kind="stable")
        self._fresh.clear()
        return new

    def __contains__(self, name: str) -> bool:
        return self._has(_digest(name))

    def __len__(self) -> int:
        return len(self._sorted) + len(self._fresh)

    def _has(self, digest: bytes) -> bool:
        if digest in self._fresh:
            return True
        key = np.array(digest, dtype="S16")  # zero bytes at the end are no part of it, there as here
        place = int(np.searchsorted(self._sorted, key))
        return place < len(self._sorted) and bool(self._sorted[place] == key)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
