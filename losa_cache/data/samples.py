"""What the rest of the house sees of a data set."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Samples:
    """Labelled images in a fixed order, decoded one at a time.

    Attributes:
        name: data set, as given on the command line (``folder`` for a folder of class folders).
        split: ``train``, ``test``, ...
        classes: class names; a label indexes them.
        ids: one stable, unique name a sample.
        labels: int64 ``(N,)``.
        load: index to decoded image; raises whatever the decoder raises.
        fingerprint: ``"sha256:..."`` of ids, labels and file sizes (or of the pixels, where they are in memory).
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    load: Callable[[int], Image.Image]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: NDArray[np.int64]) -> "Samples":
        """Keep these samples, in this order; the fingerprint stays that of the whole."""
        return Samples(
            name=self.name,
            split=self.split,
            classes=self.classes,
            ids=[self.ids[i] for i in indices],
            labels=self.labels[indices],
            load=lambda i: self.load(int(indices[i])),
            fingerprint=self.fingerprint,
        )


def from_files(name: str, split: str, classes: Sequence[str], root: Path, files: Sequence[tuple[str, int]]) -> Samples:
    """Build samples from ``(path relative to root, label)`` pairs; a missing file counts as size -1."""
    return Samples(
        name=name,
        split=split,
        classes=tuple(classes),
        ids=[path for path, _ in files],
        labels=np.array([label for _, label in files], dtype=np.int64),
        load=lambda i: load_image(root / files[i][0]),
        fingerprint=hash_lines(f"{path}\t{label}\t{_size(root / path)}" for path, label in files),
    )


def load_image(path: Path) -> Image.Image:
    """Decode a file fully, so that a truncated one fails here and not in the transform."""
    with Image.open(path) as image:
        image.load()
        return image


def hash_lines(lines: Iterable[str], payload: bytes = b"") -> str:
    """Hash lines of text, and bytes after them, into ``"sha256:..."``."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    digest.update(payload)
    return f"sha256:{digest.hexdigest()}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
