"""A folder of class folders of images, or of videos, with or without split folders above them."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from losa_cache.data import medical, video
from losa_cache.data.left import BESIDE_SPLITS, EMPTY, EMPTY_HERE, HIDDEN, Left
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, fingerprint_of, from_paths
from losa_cache.data.scan import HERE, Listing, Wanted, class_folders, hidden, holds_any, is_folder, scan
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError
from losa_cache.table_file import SUFFIXES as TABLES
from losa_cache.text import few

SPEC = SourceSpec(needs_folder=True)

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "eval"),
}
"""The names that splits go by, in whatever case, with or without ``set`` behind; a cache calls them by the first."""

WANTED = EXTENSIONS + video.EXTENSIONS
"""What files of a data set end in, in lower case."""

UNLABELLED = "unlabelled"
"""The only class of images that lie in no folders of classes."""

_ENDS = ("", "set", "_set", "-set")  # as in test_set
_SPLIT_OF = {name + end: split for split, names in SPLITS.items() for name in names for end in _ENDS}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of seg_train, TestImages, train2017
_SHOWN, _LETTERS = 3, 100  # names in a message, letters of each
_KINDS = {"hf": ("state.json", "dataset_dict.json", ".parquet"), "wds": (".tar",), "zip": (".zip",)}
"""Ends of files that other kinds of data sets are made of, by the prefix of the kind."""


def load(request: Request, name: str = "folder") -> Samples:
    """Read ``<root>/<split>/<class>/**/*`` or, where there are no split folders, ``<root>/<class>/**/*`` as train.

    Classes are numbered in the order of their sorted names, as torchvision's ImageFolder does. A class without images
    keeps its number if another split has images of it, so that splits agree; otherwise its folder is no class. Where
    there are no folders of classes, the images that lie there are of one class, ``unlabelled``: target sets say what
    they show (``losa_cache.targets``). Hidden and system files are left out, and counted in ``Samples.left``.
    DICOM and NIfTI files are read where there are no other images and no videos, DICOM files without a suffix too.

    Raises:
        UserError: for a folder that is missing, unreadable or empty, a split that is not there or not clear, a file
            in two classes, splits in the place of classes, or a mixture of images and videos.
    """
    root, split = request.root, canonical(request.split)
    if not root.is_dir():
        raise UserError(f"there is no folder {str(root)!r}: --data-dir names a folder of class folders.")
    left = Left()
    try:
        base = _split_or_root(root, split, left)
        classes = class_folders(base, WANTED, below := Left())
        require_no_splits(
            classes,
            where=lambda kind: f"folder {str(base / kind)!r}",
            inside=lambda kind: os.listdir(base / kind),
            only_folders=lambda kind: _only_folders(base / kind),
        )
        if classes:
            left.take(below)
        wanted, also, listing = _scan(base, classes or [HERE], left)  # images beside no class folders are read, too
        folders, numbers = classes, listing.labels
        if classes:
            holds = partial(holds_any, suffixes=wanted, also=also)
            classes, listing = _without_empty(root, base, classes, listing, left, holds)
    except OSError as error:
        raise _unreadable(error) from error
    paths, labels, sizes = listing.paths, listing.labels, listing.sizes
    if not paths:
        known = f"images ({', '.join(EXTENSIONS + medical.SUFFIXES)}) or videos ({', '.join(video.EXTENSIONS)})"
        raise UserError(f"folder {str(base)!r} holds no class folders with {known}{_other_kind(root, base)}.")
    left.base = str(base)
    classes = classes or [UNLABELLED]
    _say_table(root, base, classes)
    videos = [path for path in paths if path.lower().endswith(video.EXTENSIONS)]
    if wanted is medical.SUFFIXES:
        medical.require_readers(name, paths)
    if not videos:
        samples = from_paths(name, split, classes, base, paths, labels, sizes, pixels=request.pixels)
    elif len(videos) < len(paths):
        image = next(path for path in paths if path.lower().endswith(EXTENSIONS))
        raise UserError(
            f"folder {str(base)!r} holds videos ({videos[0]!r}) and images ({image!r}): keep one kind in it."
        )
    else:
        samples = video.from_videos(name, split, classes, base, list(zip(paths, labels.tolist(), strict=True)), sizes)
    samples = replace(samples, left=left)
    if np.array_equal(numbers, labels):
        return samples
    former = fingerprint_of(paths, numbers, sizes)  # earlier versions gave a number to every folder
    return replace(samples, earlier=replace(samples, classes=tuple(folders), labels=numbers, fingerprint=former))


def other_splits(request: Request) -> list[str]:
    """List the other splits that have folders.

    Raises:
        UserError: if the root cannot be read.
    """
    split = canonical(request.split)
    return [other for other in SPLITS if other in _split_folders(request.root) and other != split]


def _scan(base: Path, folders: list[str], left: Left) -> tuple[tuple[str, ...], Wanted | None, Listing]:
    """List images or videos, or medical images if there are none; say which suffixes and files were wanted."""
    listing = scan(base, folders, WANTED, found := Left())
    suffixes: tuple[str, ...] = WANTED
    also: Wanted | None = None
    if not listing.paths:
        medical_ones = scan(base, folders, medical.SUFFIXES, others := Left(), medical.is_nameless_dicom)
        if medical_ones.paths:
            suffixes, also = medical.SUFFIXES, medical.is_nameless_dicom
            listing, found = medical_ones, others
    left.take(found)
    return suffixes, also, listing


def _without_empty(
    root: Path, base: Path, classes: list[str], listing: Listing, left: Left, holds: Callable[[Path, str], bool]
) -> tuple[list[str], Listing]:
    """Leave out the classes that have no images in any split, and note those that have none in this one."""
    filled = np.bincount(listing.labels, minlength=len(classes)) > 0
    others = [root / name for names in _split_folders(root).values() for name in names if base != root]
    for label in np.flatnonzero(~filled).tolist():
        kind = classes[label]
        filled[label] = any(holds(other, kind) for other in others if (other / kind).is_dir())
        left.add(EMPTY_HERE if filled[label] else EMPTY, kind)
    numbers = np.cumsum(filled) - 1
    kept = [kind for kind, stays in zip(classes, filled.tolist(), strict=True) if stays]
    return kept, replace(listing, labels=numbers[listing.labels])


def canonical(split: str) -> str:
    """Give the name of a split that caches use: ``validation`` is ``val``. An unknown name stays as it is."""
    return _SPLIT_OF.get(split.lower(), split)


def split_folder(root: Path, split: str) -> Path | None:
    """Find a split's folder by any of the split's names.

    Raises:
        UserError: if there are two, or the root cannot be read.
    """
    folders = _split_folders(root).get(canonical(split), [])
    if len(folders) > 1:
        raise UserError(
            f"folder {str(root)!r} holds {few(folders, _SHOWN)}, which all name the split {canonical(split)!r}: keep "
            "one of them, or rename the others."
        )
    if folders:
        return root / folders[0]
    return root / split if split not in SPLITS and split in _folders(root) else None


def find(base: Path, folder: Path) -> list[str]:
    """List the images and videos below a folder, each real file once, as sorted paths relative to ``base``.

    Raises:
        UserError: for a folder below it that cannot be read.
    """
    try:
        paths = scan(folder, [HERE], WANTED, Left()).paths
    except OSError as error:
        raise _unreadable(error) from error
    prefix = os.path.relpath(folder, base)
    return sorted(os.path.normpath(os.path.join(prefix, path)) for path in paths)


def _split_folders(root: Path) -> dict[str, list[str]]:
    """Give the folders whose names are those of splits."""
    folders: dict[str, list[str]] = {}
    for name in _folders(root):
        if name.lower() in _SPLIT_OF:
            folders.setdefault(_SPLIT_OF[name.lower()], []).append(name)
    return folders


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry) and not hidden(entry.name))
    except OSError as error:
        raise _unreadable(error) from error


def _split_or_root(root: Path, split: str, left: Left) -> Path:
    splits = _split_folders(root)
    others = [name for name in _folders(root) if splits and name.lower() not in _SPLIT_OF]
    if len(splits) == 1:  # of two or more it is clear that they are splits
        single = next(iter(splits.values()))
        classes = [name for name in others if any(f.lower().endswith(WANTED) for f in os.listdir(root / name))]
        instead = f", or pass --data-dir {str(root / single[0])!r}"
        require_no_classes(f"folder {str(root)!r}", single, classes, instead)
    if (folder := split_folder(root, split)) is not None:
        _note_beside(root, {folder.name, *(name for names in splits.values() for name in names)}, left)
        for name in (name for names in splits.values() for name in names):
            if root / name != folder and folder.samefile(root / name):
                log.warning(
                    "%r and %r in %r are one folder, by a link: two splits of the same images.",
                    folder.name,
                    name,
                    str(root),
                )
        return folder
    if split == "train" and not splits:
        return root
    raise UserError(
        f"folder {str(root)!r} has no split {split!r}; it has: "
        f"{', '.join(key for key in SPLITS if key in splits) or 'train (the folder itself)'}{_other_kind(root, root)}."
    )


def _other_kind(*folders: Path) -> str:
    """Say how to name a folder that another kind of data set reads, as the end of a sentence; empty: none does.

    Args:
        folders: that of the data set, and that of a split.
    """
    for folder in folders:
        for prefix, ends in _KINDS.items():
            if file := next((name for name in sorted(os.listdir(folder)) if name.lower().endswith(ends)), None):
                place = folder / file if prefix == "zip" else folders[0]
                return f"; {file[:_LETTERS]!r} in it is of another kind of data set: pass --dataset '{prefix}:{place}'"
    return ""


def _say_table(root: Path, base: Path, classes: list[str]) -> None:
    """Warn of a table beside images of one class: it may say their classes."""
    if len(classes) > 1:
        return
    for folder in dict.fromkeys((base, root)):
        if name := next((name for name in sorted(os.listdir(folder)) if name.lower().endswith(TABLES)), None):
            log.warning(
                "all images in %r are of one class, %r, and the table %r lies there: if it names the images, pass "
                "--dataset %r.",
                str(base),
                classes[0],
                name[:_LETTERS],
                str(folder / name),
            )
            return


def _note_beside(root: Path, splits: set[str], left: Left) -> None:
    """Note what lies beside the folders of splits."""
    for name in os.listdir(root):
        if name not in splits:
            left.add(HIDDEN if hidden(name) else BESIDE_SPLITS, name)


def require_no_classes(where: str, splits: list[str], classes: list[str], instead: str = "") -> None:
    """Refuse folders of images beside a single split folder: either that folder is a class, or the others do not belong
    there.

    Args:
        where: the folders are, for messages.
        splits: the split folder, by each of its names.
        classes: the folders of images beside it.
        instead: a further way out, for messages.
    """
    if classes:
        raise UserError(
            f"{where} holds {few(splits, _SHOWN)}, the name of a split, beside folders of images "
            f"({few(classes, _SHOWN)}): if it is a class, move all classes into a folder called 'train'; if it is the "
            f"split, move the others away{instead}."
        )


def require_no_splits(
    classes: Sequence[str],
    *,
    where: Callable[[str], str],
    inside: Callable[[str], Iterable[str]],
    only_folders: Callable[[str], bool],
) -> None:
    """Refuse folders that have the names of splits and lie where classes or their images should.

    Among classes these are folders of folders whose names contain a split's name; below a class, two folders that have
    exactly the name of a split.

    Args:
        classes: names of their folders.
        where: names the folder of a class, or of all classes (``""``), for messages.
        inside: gives the names directly in the folder of a class.
        only_folders: tells whether the folder of a class holds only folders.
    """
    like = {name: split for name in classes if (split := split_in(name)) and only_folders(name)}
    if len({*like.values()}) > 1 or (like and len(classes) == 1):
        raise _astray(where(""), [*like])
    for kind in classes:
        splits = sorted({name for name in inside(kind) if name.lower() in _SPLIT_OF})
        if len({_SPLIT_OF[name.lower()] for name in splits}) > 1:
            raise _astray(where(kind), splits)


def _astray(where: str, splits: list[str]) -> UserError:
    return UserError(
        f"{where} holds {few(splits, _SHOWN)}, which seem to be splits and lie where classes or images do: name a data "
        "set (--data-dir) with 'train', 'val' and 'test' at its top, and the classes in these; if they are no splits, "
        "rename them."
    )


def split_in(name: str) -> str | None:
    """Say which split a name contains, if it contains one."""
    splits = {_SPLIT_OF[word] for word in map(str.lower, _WORD.findall(name)) if word in _SPLIT_OF}
    return splits.pop() if len(splits) == 1 else None


def _only_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        kinds = {entry.is_dir() for entry in entries if not hidden(entry.name)}
    return kinds == {True}


def _unreadable(error: OSError) -> UserError:
    reason = "permission denied" if isinstance(error, PermissionError) else error.strerror or str(error)
    return UserError(f"folder {error.filename!r} cannot be read: {reason}.")
