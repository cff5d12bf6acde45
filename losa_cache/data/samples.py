"""A data set, as the rest of the package sees it."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from losa_cache.data.clips import Clip
from losa_cache.data.left import Left
from losa_cache.data.picture import load_image
from losa_cache.data.pixel_rules import AS_DECLARED, PixelRules
from losa_cache.errors import UserError
from losa_cache.ids import Ids
from losa_cache.targets.check import require_name
from losa_cache.targets.source import Source

if TYPE_CHECKING:
    from losa_cache.data.from_python import MapStyle

_TWO_CRANES = "imagenet"  # torchvision calls a bird and a machine so, and caches keep the classes they were made with


@dataclass(frozen=True)
class Samples:
    """Labelled images or videos in a fixed order, decoded one at a time.

    Attributes:
        name: data set, as given on the command line (``folder`` for a folder of class folders).
        split: ``train``, ``test``, ...
        classes: class names; a label indexes them.
        ids: a stable, unique name for each sample; they are packed (:class:`losa_cache.ids.Ids`).
        labels: int64 ``(N,)``.
        load: gives the decoded image of an index, or the middle frame of a video; raises whatever the decoder raises.
        fingerprint: ``"sha256:..."`` over ids, labels and file sizes (over the pixels, if they are in memory).
        clip: for videos, gives the frames of an index and a clip, decoded one by one; ``None`` for images.
        file: gives the file of an index; ``None`` if samples do not lie in files of their own.
        encoded: gives the stored bytes of an image that lies in no file of its own; ``None`` if it has a file, or if
            there are no such bytes.
        archive: gives the file that holds what ``encoded`` gives: an archive.
        pixels: by which rules ``load`` brought values that are not 8-bit RGB to pixels.
        targets: target sets that come with the data, by name, beside the labels. Their ids are those of the samples, of
            more samples, or what :mod:`losa_cache.targets.match` matches with these.
        left: what was left out of the data set.
        earlier: the same samples with the classes, labels and fingerprint that earlier versions gave them; ``None``:
            they are those.

    Raises:
        UserError: for an id that :func:`usable_ids` refuses, labels beyond the classes, an empty name of a class or one
            that two have, or a name that no target set can have.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    load: Callable[[int], Image.Image]
    fingerprint: str
    clip: Callable[[int, Clip], Iterator[Image.Image]] | None = None
    file: Callable[[int], Path] | None = None
    encoded: Callable[[int], bytes] | None = None
    archive: Callable[[int], Path] | None = None
    pixels: PixelRules = AS_DECLARED
    targets: Mapping[str, Source] = field(default_factory=lambda: MappingProxyType({}))
    left: Left = field(default_factory=Left)
    earlier: "Samples | None" = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", usable_ids(self.ids, self.name))
        for target in self.targets:
            try:
                require_name(target)
            except ValueError as error:
                raise UserError(f"data set {self.name!r} cannot have a target set {target[:80]!r}: {error}.") from error
        self._require_class_names()
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(
                f"data set {self.name!r} has labels from {self.labels.min()} to {self.labels.max()}, but "
                f"{len(self.classes)} classes: a label is the number of a class, from 0."
            )

    def _require_class_names(self) -> None:
        if blank := [number for number, name in enumerate(self.classes) if not name.strip()]:
            raise UserError(f"data set {self.name!r} has no name for its class {blank[0]}: give each class one.")
        if len({*self.classes}) < len(self.classes) and self.name != _TWO_CRANES:
            twice = next(name for name, count in Counter(self.classes).items() if count > 1)
            raise UserError(f"data set {self.name!r} calls two classes {twice[:80]!r}: rename one of them.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def stored(self) -> bool:
        """Whether samples are read from files or archives, and so may say how they are turned."""
        return self.file is not None or self.encoded is not None

    @classmethod
    def of(
        cls,
        data: "MapStyle | Iterable[tuple[Any, int]]",
        name: str = "samples",
        *,
        split: str = "train",
        labels: Sequence[int] | NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        fingerprint: str | None = None,
    ) -> "Samples":
        """Build a data set from Python objects, for ``losa_cache.extract(backbone, samples)``.

        Images are asked for while the backbone runs, from several threads (``workers=1`` for a data set that allows
        one). The fingerprint, by which the same data find their cache again, covers ids, labels and pixels of a list.
        Of another data set it covers ids, labels and the pixels of 16 images, so that not all have to be decoded;
        where its labels are not known otherwise, every image is asked for once, and all pixels count. Without
        ``fingerprint``, 8 images of such a data set are asked for 4 times more, to notice random transforms.

        Args:
            data: a map-style data set of torch, or a list or generator, of pairs of an image and the number of its
                class; with ``labels``, images alone. An image is one of PIL, an array or a tensor
                (:func:`losa_cache.data.from_python.picture`).
            name: of the data set; with ``split`` it becomes a part of the cache's name.
            split: runs are tested on caches of ``test`` or ``val``.
            labels: for each sample a number, which indexes ``classes``; by default ``data.targets`` or ``data.labels``,
                where the items agree with it, or else what the items say.
            classes: class names; by default ``data.classes``, ``data.class_to_idx``, or numbers.
            ids: a unique name for each sample; by default its number in six digits.
            fingerprint: a version of the data, which takes the place of pixels.

        Raises:
            UserError: if the counts differ, an id is there twice, an image or a class is of no use, or the data set
                has a random transform of torchvision or gives another image when it is asked again.
        """
        from losa_cache.data.from_python import samples_of

        return samples_of(data, name, split=split, labels=labels, classes=classes, ids=ids, fingerprint=fingerprint)

    def numbered_as(self, fingerprint: str) -> "Samples":
        """Give these samples as the earlier version gave them, if a cache with this fingerprint has them so."""
        return self.earlier if self.earlier is not None and self.earlier.fingerprint == fingerprint else self

    def select(self, indices: NDArray[np.int64]) -> "Samples":
        """Keep these samples, in this order; the fingerprint stays that of the whole data set."""
        load, clip, file, encoded, archive = self.load, self.clip, self.file, self.encoded, self.archive
        return replace(
            self,
            ids=Ids.of(self.ids).take(indices),
            labels=self.labels[indices],
            load=lambda i: load(int(indices[i])),
            clip=None if clip is None else lambda i, wanted: clip(int(indices[i]), wanted),
            file=None if file is None else lambda i: file(int(indices[i])),
            encoded=None if encoded is None else lambda i: encoded(int(indices[i])),
            archive=None if archive is None else lambda i: archive(int(indices[i])),
            earlier=None if self.earlier is None else self.earlier.select(indices),
        )

    def require_augmentable(self, augment: str | None) -> None:
        """Refuse an augmentation of videos.

        Raises:
            UserError: naming it.
        """
        if augment is not None and self.clip is not None:
            raise UserError(f"augment is {augment!r}, but clips of videos are not augmented: leave it out.")

    def require_clips(self, clip: Clip) -> None:
        """Refuse clips of a data set of images; a single clip of one frame is allowed.

        Raises:
            UserError: for a data set of images.
        """
        if self.clip is None and (clip.frames > 1 or clip.count > 1):
            raise UserError(
                f"data set {self.name!r} holds images, of which there are no clips (clips: {clip.count}, frames: "
                f"{clip.frames}): choose a data set of videos, or a backbone for images."
            )


def usable_ids(ids: Iterable[str], name: str) -> Ids:
    """Pack the ids of a data set.

    Raises:
        UserError: for an id that a cache would not give back as it is: it pads them with zeros.
    """
    packed = Ids.of(ids)
    if (lost := packed.first_lost()) is not None:
        wrong = f"the id {lost[:80]!r}, which holds a zero byte" if lost else "an empty id"
        raise UserError(f"data set {name!r} has {wrong}: give each sample a name of its own.")
    return packed


def from_files(
    name: str,
    split: str,
    classes: Sequence[str],
    root: Path,
    files: Sequence[tuple[str, int]],
    sizes: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    pixels: PixelRules = AS_DECLARED,
) -> Samples:
    """Build samples from ``(path relative to root, label)`` pairs.

    Args:
        name, split, classes: of the data set.
        root: folder of the files.
        files: their paths and labels.
        sizes: in bytes, if they are known already; a missing file has the size -1.
        pixels: how values that are not 8-bit RGB become pixels.

    Raises:
        UserError: for a file that is there twice.
    """
    labels = np.array([label for _, label in files], dtype=np.int64)
    return from_paths(name, split, classes, root, [path for path, _ in files], labels, sizes, pixels=pixels)


def from_paths(
    name: str,
    split: str,
    classes: Sequence[str],
    root: Path,
    paths: Sequence[str],
    labels: NDArray[np.int64],
    sizes: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    pixels: PixelRules = AS_DECLARED,
) -> Samples:
    """Build samples as :func:`from_files` does, of columns: a million files take little more than their names.

    Args:
        name, split, classes, root, sizes, pixels: as of :func:`from_files`.
        paths: relative to ``root``; they are the ids.
        labels: int64 ``(N,)``.

    Raises:
        UserError: for a file that is there twice.
    """
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise UserError(f"data set {name!r} lists {twice!r} twice: leave one out.")
    if sizes is None:
        sizes = [size_of(root / path) for path in paths]
    paths = Ids.of(paths)
    return Samples(
        name=name,
        split=split,
        classes=tuple(classes),
        ids=paths,
        labels=labels,
        load=lambda i: load_image(root / paths[i], pixels),
        fingerprint=fingerprint_of(paths, labels, sizes),
        file=lambda i: root / paths[i],
        pixels=pixels,
    )


def fingerprint_of(ids: Sequence[str], labels: NDArray[np.int64], marks: Iterable[int | str]) -> str:
    """Hash ids, labels, and what is known of the bytes of each sample: their number, or a checksum."""
    columns = zip(ids, map(int, labels), marks, strict=True)
    return hash_lines(f"{own}\t{label}\t{mark}" for own, label, mark in columns)


def hash_lines(lines: Iterable[str], payload: bytes = b"") -> str:
    """Hash lines of text, and bytes after them, into ``"sha256:..."``."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    digest.update(payload)
    return f"sha256:{digest.hexdigest()}"


def size_of(path: Path | str) -> int:
    """Give the number of bytes of a file; -1 of one that cannot be looked at."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # it does not decode, and is named then; ValueError: a zero byte in the name
        return -1


def described(image: Image.Image) -> str:
    """Give a text that identifies a picture: mode, size, and a hash of pixels and palette."""
    pixels = image.tobytes() + bytes(image.getpalette() or ())
    return f"{image.mode}\t{image.size}\t{hashlib.sha256(pixels).hexdigest()}"
