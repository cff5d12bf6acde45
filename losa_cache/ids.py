"""The ids of many samples in little memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import index
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError

AT_ONCE = 2**12  # ids that are worked on together: what lies between the steps stays small
CODEC = ("utf-8", "surrogateescape")  # file names need not be UTF-8: their bytes come back as they were


class Ids(Sequence[str]):
    """Texts that lie in one piece of bytes: each takes its own bytes and 8 more (16, if all take 4 GiB).

    A million of Python's strings take 60 MB beside their letters. Parts and other orders share the bytes.

    Args:
        text: UTF-8.
        starts, ends: ``(N,)``, where each id begins and ends in ``text``.
    """

    __slots__ = ("_ends", "_starts", "_text")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: bytearray, starts: NDArray[Any], ends: NDArray[Any]) -> None:
        self._text, self._starts, self._ends = text, starts, ends

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Ids":
        """Give the ids of a list or an iterator; ids that are packed already are given as they are.

        Raises:
            UserError: for an id with a lone surrogate, which is no text: it could not be given back as it is.
        """
        if isinstance(ids, Ids):
            return ids
        text, bounds = bytearray(), array("q", [0])
        for one in ids:
            text += _bytes(one)
            bounds.append(len(text))
        places = np.frombuffer(bounds, dtype=np.int64).astype(_smallest(len(text)))
        return cls(text, places[:-1], places[1:])

    @classmethod
    def unpacked(cls, rows: NDArray[np.uint8]) -> Self:
        """Give the ids of :attr:`packed`."""
        whole = np.ascontiguousarray(rows if rows.shape[1] else np.zeros((len(rows), 1), np.uint8))
        lengths = np.strings.str_len(whole.view(f"S{whole.shape[1]}")[:, 0])  # zeros at the end do not count
        kind = _smallest(int(lengths.sum()))
        ends = np.cumsum(lengths, dtype=kind)
        starts = ends - lengths.astype(kind)
        text = bytearray(int(lengths.sum()))
        letters = np.frombuffer(text, dtype=np.uint8)
        for at in range(0, len(rows), AT_ONCE):
            part, first, last = slice(at, at + AT_ONCE), starts[at : at + AT_ONCE], ends[at : at + AT_ONCE]
            letters[first[0] : last[-1]] = whole[part][np.arange(whole.shape[1]) < (last - first)[:, None]]
        return cls(text, starts, ends)

    @property
    def packed(self) -> NDArray[np.uint8]:
        """The ids as rows of UTF-8 bytes, padded with zeros: ``(N, longest)``, at least one column.

        Every Zarr v3 reader has this type.
        """
        lengths = self._ends - self._starts
        rows = np.zeros((len(self), int(lengths.max(initial=1))), dtype=np.uint8)
        for at in range(0, len(self), AT_ONCE):
            own = b"".join(self[at : at + AT_ONCE].encoded())
            there = np.arange(rows.shape[1]) < lengths[at : at + AT_ONCE, None]
            rows[at : at + AT_ONCE][there] = np.frombuffer(own, dtype=np.uint8)
        return rows

    def encoded(self) -> Iterator[bytearray]:
        """Yield the bytes of each id."""
        text = self._text
        for at in range(0, len(self), AT_ONCE):
            starts, ends = self._starts[at : at + AT_ONCE].tolist(), self._ends[at : at + AT_ONCE].tolist()
            for start, end in zip(starts, ends, strict=True):
                yield text[start:end]

    def first_lost(self) -> str | None:
        """Give the first id that is empty or holds a zero: :attr:`packed` does not tell such from others."""
        if (self._ends > self._starts).all() and 0 not in self._text:
            return None
        return next((own for own in self if not own or "\0" in own), None)

    def take(self, places: NDArray[np.int64]) -> "Ids":
        """Give the ids of these places, in their order."""
        return Ids(self._text, self._starts[places], self._ends[places])

    def repeat(self, times: int) -> "Ids":
        """Give each id so many times, one behind the other."""
        return self if times == 1 else Ids(self._text, self._starts.repeat(times), self._ends.repeat(times))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "Ids": ...
    def __getitem__(self, place: int | slice) -> "str | Ids":
        if isinstance(place, slice):
            return Ids(self._text, self._starts[place], self._ends[place])
        at = index(place)
        return self._text[self._starts[at] : self._ends[at]].decode(*CODEC)

    def __iter__(self) -> Iterator[str]:
        for own in self.encoded():
            yield own.decode(*CODEC)

    def __eq__(self, other: object) -> Any:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = list(chain(self[:3], ["..."] if len(self) > 3 else []))
        return f"Ids({len(self)}: {', '.join(shown)})"


def _bytes(one: str) -> bytes:
    try:
        own = one.encode(*CODEC)
        if one.isascii() or own.decode(*CODEC) == one:  # bytes of a file name may be escaped in parts that are UTF-8
            return own
    except UnicodeEncodeError:
        pass
    raise UserError(f"the id {one[:80]!r} has a lone surrogate, which is no letter: give ids that are text.")


def _smallest(size: int) -> type[np.uint32] | type[np.int64]:
    """Give the type of places in so many bytes."""
    return np.uint32 if size < 2**32 else np.int64
