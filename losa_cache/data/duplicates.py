"""Images with the same content, inside a split and across splits, without reading most files.

Files are compared by their size, then by the last 4 kB of those of one size, then by all bytes of those that still
agree. Bytes of an archive, and images in memory, are compared as a whole.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from losa_cache.data.headers import in_parts
from losa_cache.data.samples import Samples, described

_TAIL = 4096  # bytes at the end of a file: those at its beginning are alike in pictures of one camera
_KEY = 16  # bytes

Place = tuple[int, int]
"""The number of a split, and of an image in it."""


def same_content(
    splits: Sequence[Samples], threads: Executor, progress: Callable[[float], None] = lambda _: None
) -> list[list[Place]]:
    """Group the images of all splits that have the same content; images that no other equals are left out.

    An image that cannot be read equals none.

    Args:
        splits: each of them with files, or none of them.
        threads: that read.
        progress: is called with the share of the work that is done.

    Returns:
        groups of at least two, and the images of each, in the order of the splits.
    """
    keys = (_size, _tail, _whole) if splits[0].file is not None else (_whole,)
    counts = list(map(len, splits))
    places = np.stack(
        [np.repeat(np.arange(len(splits)), counts), np.concatenate([np.arange(count) for count in counts])], axis=1
    )
    groups = np.zeros(len(places), dtype=np.int64)
    for done, key in enumerate(keys):

        def key_of(split: int, index: int, key: Callable[[Samples, int], bytes] = key) -> bytes:
            return key(splits[split], index)

        def advance(share: float, done: int = done) -> None:
            progress((done + share) / len(keys))

        places, groups = _refined(places, groups, key_of, threads, advance)
    found: dict[int, list[Place]] = {}
    for order in np.lexsort((places[:, 1], places[:, 0])).tolist():
        split, index = places[order].tolist()
        found.setdefault(int(groups[order]), []).append((split, index))
    return list(found.values())


def _refined(
    places: NDArray[np.int64],
    groups: NDArray[np.int64],
    key_of: Callable[[int, int], bytes],
    threads: Executor,
    progress: Callable[[float], None],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part groups by a further key; what is alone then is left out.

    Args:
        places: of images, int64 ``(N, 2)``: the numbers of their splits, and of the images in these.
        groups: the group of each.
        key_of: gives 16 bytes for a place; raises whatever reading raises.
        threads: that read.
        progress: is called with the share of the work that is done.

    Returns:
        the places that are left, and their groups.
    """
    content, readable = bytearray(_KEY * len(places)), np.zeros(len(places), dtype=bool)

    def read(part: range) -> int:
        for i, (split, index) in zip(part, places[part.start : part.stop].tolist(), strict=True):
            with suppress(Exception):  # decoders raise anything; headers name the image
                content[_KEY * i : _KEY * (i + 1)] = key_of(split, index)
                readable[i] = True
        return part.stop

    for done in threads.map(read, in_parts(len(places))):
        progress(done / len(places))
    first, second = np.frombuffer(content, dtype=np.uint64).reshape(-1, 2)[readable].T
    places, groups = places[readable], groups[readable]
    order = np.lexsort((second, first, groups))
    columns = np.stack([groups[order].astype(np.uint64), first[order], second[order]])
    runs = np.cumsum(np.any(np.diff(columns, axis=1, prepend=columns[:, :1]) != 0, axis=0))
    several = np.bincount(runs)[runs] > 1 if len(runs) else runs.astype(bool)
    return places[order][several], runs[several]


def _size(samples: Samples, index: int) -> bytes:
    assert samples.file is not None
    return os.stat(samples.file(index)).st_size.to_bytes(_KEY, "little")


def _tail(samples: Samples, index: int) -> bytes:
    assert samples.file is not None
    with open(samples.file(index), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return hashlib.sha256(file.read()).digest()[:_KEY]


def _whole(samples: Samples, index: int) -> bytes:
    if samples.file is not None:
        with open(samples.file(index), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:_KEY]
    if samples.encoded is not None:
        return hashlib.sha256(samples.encoded(index)).digest()[:_KEY]
    return hashlib.sha256(described(samples.load(index)).encode()).digest()[:_KEY]
