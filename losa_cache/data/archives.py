"""Images that lie in archives, not in files of their own."""

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.descriptors import ReadFile, ReplacedError, descriptors
from losa_cache.data.columns import SPLIT, Columns
from losa_cache.data.picture import read_image
from losa_cache.data.pixel_rules import PixelRules
from losa_cache.data.samples import Samples, fingerprint_of
from losa_cache.data.sources.folder import UNLABELLED
from losa_cache.data.target_columns import TargetColumn, target_columns
from losa_cache.errors import UserError
from losa_cache.targets.source import Source

MOST_BYTES = 2**31 - 1
"""Bytes that one image of an archive may have: what one call of the system reads."""
_MOST = 2**63 - 1  # of a label
_SPARSE = 10_000  # numbers of classes that few images of a split may leave out


class Archive:
    """A file of which parts are read at any offset, by any number of threads and forked processes.

    Args:
        path: of a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ReadFile(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self, offset: int, size: int) -> bytes:
        """Read so many bytes.

        Raises:
            OSError, ValueError: if the file cannot be read, was replaced since it was first read, or ends earlier.
        """
        if size > MOST_BYTES:
            raise ValueError(f"it has {size} bytes, more than {MOST_BYTES}")
        try:
            with descriptors().lent(self._file) as handle:
                content = os.pread(handle, size, offset)
        except ReplacedError as error:
            raise ValueError(f"{self.path.name} was replaced while it was in use") from error
        if len(content) != size:
            raise ValueError(f"{self.path.name} ends too early")
        return content


def from_archives(
    name: str,
    split: str,
    classes: Sequence[str],
    ids: Sequence[str],
    labels: NDArray[np.int64],
    marks: Iterable[int | str],
    *,
    encoded: Callable[[int], bytes],
    archive: Callable[[int], Path],
    pixels: PixelRules,
    targets: Mapping[str, Source] = MappingProxyType({}),
) -> Samples:
    """Build samples from the encoded images of archives.

    Args:
        name, split, classes, ids, labels, targets: of the data set.
        marks: what the archives say of each image's bytes, for the fingerprint: their number, or a checksum.
        encoded: gives the bytes of an image.
        archive: gives the file that holds them.
        pixels: how values that are not 8-bit RGB become pixels.
    """
    return Samples(
        name=name,
        split=split,
        classes=tuple(classes),
        ids=ids,
        labels=labels,
        load=lambda i: read_image(io.BytesIO(encoded(i)), pixels),
        fingerprint=fingerprint_of(ids, labels, marks),
        encoded=encoded,
        archive=archive,
        pixels=pixels,
        targets=targets,
    )


def target_columns_of(columns: Columns, where: str) -> dict[str, TargetColumn]:
    """Say which columns of archives become target sets, by the names of these.

    Args:
        columns: that are asked for.
        where: they are, for messages.

    Raises:
        UserError: for two columns of one name, or one of splits, which archives have by their files.
    """
    if SPLIT in columns.roles:
        raise UserError(f"{where} has splits of its own: leave {SPLIT}={columns.roles[SPLIT]} out of --columns.")
    return target_columns(columns.roles, columns.targets)


def numbered(
    labels: Sequence[int | str | None], ids: Sequence[str], *, where: str, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Number the classes of labels.

    Args:
        labels: numbers, or names. ``None`` and -1 say that an image has none.
        ids: of the images, for messages.
        where: the labels are from, for messages.
        names: of the classes that numbers mean; ``None``: their names are the numbers.

    Returns:
        names of the classes, and the number of each image's class. Without names, numbers from 0 stay as they are, and
        names are numbered in sorted order. If no image has a label, there is the one class ``unlabelled``.

    Raises:
        UserError: if some images have a label and others do not, for an empty label, or for a number that has no name
            or more than 64 bits.
    """
    lacking = [place for place, label in enumerate(labels) if label is None or label == -1]
    if len(lacking) == len(labels):
        return (UNLABELLED,), np.zeros(len(labels), dtype=np.int64)
    if lacking:
        raise UserError(
            f"{where} gives {len(lacking)} of {len(labels)} images no label, the first of them {ids[lacking[0]]!r}: "
            "label all of them, or none."
        )
    for name, label in zip(ids, labels, strict=True):
        if isinstance(label, int) and not -_MOST <= label <= _MOST:
            raise UserError(f"{where} gives {name!r} a label of more than 64 bits: number the classes from 0.")
        if isinstance(label, str) and not label.strip():
            raise UserError(f"{where} gives {name!r} an empty label: write the name of its class.")
    if not all(isinstance(label, int) for label in labels):
        texts = [str(label) for label in labels]
        known = sorted({*texts}) if names is None else list(names)
        place_of = {text: place for place, text in enumerate(known)}
        if unknown := next((text for text in texts if text not in place_of), None):
            raise UserError(f"{where} has the label {unknown!r}, which is none of its {len(known)} classes: add it.")
        return tuple(known), np.array([place_of[text] for text in texts], dtype=np.int64)
    numbers = np.array(labels, dtype=np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    if names is not None:
        if not 0 <= low <= high < len(names):
            raise UserError(f"{where} has labels from {low} to {high}, but {len(names)} classes: add their names.")
        return tuple(names), numbers
    if low >= 0 and high < max(len(numbers), _SPARSE):
        return tuple(map(str, range(high + 1))), numbers
    distinct, places = np.unique(numbers, return_inverse=True)  # numbers that count nothing are names
    return tuple(map(str, distinct.tolist())), places.astype(np.int64)
