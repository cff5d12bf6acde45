"""VTAB-1k: its 19 tasks, and their images in the layout of NOAH's archive, which is the one in common use, or in class
folders, as they are written out of TFDS.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from losa_cache.data.label_files import read_list
from losa_cache.data.left import Left
from losa_cache.data.names import require_split
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, from_files
from losa_cache.data.scan import class_folders, scan
from losa_cache.data.sources.folder import EXTENSIONS
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError

SPEC = SourceSpec(needs_folder=True, splits=("train800", "val200", "train800val200", "test"))

NAME = "vtab"
TRAIN, VAL, BOTH, TEST = SPEC.splits
TRAINING_SAMPLES, VALIDATION_SAMPLES = 1000, 200
GROUPS = ("natural", "specialised", "structured")


@dataclass(frozen=True)
class Task:
    """One of the 19 tasks.

    Attributes:
        title: as in Table 1 of the paper.
        group: one of :data:`GROUPS`.
        classes: number of classes; no list has them all.
        tests: number of test images.
    """

    title: str
    group: str
    classes: int
    tests: int


TASKS = {
    "cifar": Task("Cifar100", "natural", 100, 10000),
    "caltech101": Task("Caltech101", "natural", 102, 6084),
    "dtd": Task("DTD", "natural", 47, 1880),
    "oxford_flowers102": Task("Flower102", "natural", 102, 6149),
    "oxford_iiit_pet": Task("Pets", "natural", 37, 3669),
    "svhn": Task("SVHN", "natural", 10, 26032),
    "sun397": Task("Sun397", "natural", 397, 21750),
    "patch_camelyon": Task("Camelyon", "specialised", 2, 32768),
    "eurosat": Task("EuroSAT", "specialised", 10, 5400),
    "resisc45": Task("Resisc45", "specialised", 45, 6300),
    "diabetic_retinopathy": Task("Retinopathy", "specialised", 5, 42670),
    "clevr_count": Task("Clevr-Count", "structured", 8, 15000),
    "clevr_dist": Task("Clevr-Dist", "structured", 6, 15000),
    "dmlab": Task("DMLab", "structured", 6, 22735),
    "kitti": Task("KITTI-Dist", "structured", 4, 711),
    "dsprites_loc": Task("dSpr-Loc", "structured", 16, 73728),
    "dsprites_ori": Task("dSpr-Ori", "structured", 16, 73728),
    "smallnorb_azi": Task("sNORB-Azim", "structured", 18, 12150),
    "smallnorb_ele": Task("sNORB-Ele", "structured", 9, 12150),
}
"""By the name of the folder, in the order of the paper's Table 1."""


def other_splits(request: Request) -> tuple[str, ...]:
    """List the splits that share no image with that of a request."""
    return {TRAIN: (VAL, TEST), VAL: (TRAIN, TEST), BOTH: (TEST,), TEST: (BOTH,)}[request.split]


def load(request: Request) -> Samples:
    """Read a split of the task whose folder is named: ``<root>/<split>.txt``, lines ``images/test/000000.jpg 3``.

    If both lists are there, ``train800val200`` is read as ``train800`` followed by ``val200``, so that a sample's id
    says to which of the two it belongs. NOAH's own list of the thousand images names copies of them with new numbers.

    A split without a list may be a folder of class folders, ``<root>/test/3/*.png``. If all of these are called by
    numbers, the numbers are the labels; else names are numbered in sorted order, over all splits.

    The names of the classes are their numbers. There are as many classes as the task has or, for a task that is none of
    the 19, as its lists name.

    Raises:
        UserError: for another split, a list that is missing or does not parse, a path that leads out of the folder, a
            label out of range, or lists that do not agree with each other.
    """
    root, split = request.root, request.split
    require_split(NAME, split)
    task = Path(os.path.abspath(root)).name
    lists = {name: _read(list_path(root, name), task) for name in SPEC.splits if list_path(root, name).is_file()}
    lists |= _of_folders(root, [name for name in SPEC.splits if (root / name).is_dir()], task, [*lists])
    parts = (TRAIN, VAL) if split == BOTH and TRAIN in lists and VAL in lists else (split,)
    for part in parts:
        if part not in lists:
            lists[part] = _read(list_path(root, part), task)
    _require_agreement(lists, root)
    files = [entry for part in parts for entry in lists[part].items()]
    classes = [str(number) for number in range(_classes(lists, task))]
    return from_files(f"{NAME}/{task}", split, classes, root, files, pixels=request.pixels)


def list_path(root: Path, split: str) -> Path:
    """File of a split's list."""
    return root / f"{split}.txt"


def _read(path: Path, task: str) -> dict[str, int]:
    entries = read_list(path, whose="VTAB", hint="--data-dir names the folder of one task, as in vtab-1k/cifar")
    if not entries:
        raise UserError(f"list {str(path)!r} names no images.")
    known = TASKS.get(task)
    found: dict[str, int] = {}
    for number, name, label in entries:
        where = f"line {number} of {str(path)!r}"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{where} leads out of the folder: {name!r}.")
        if known is not None and label >= known.classes:
            raise UserError(f"{where} has the label {label}: those of {task} are 0 to {known.classes - 1}.")
        found[name] = label
    return found


def _of_folders(root: Path, splits: list[str], task: str, lists: list[str]) -> dict[str, dict[str, int]]:
    """Read the class folders of splits.

    Args:
        root: folder of the task.
        splits: that have a folder; those that have a list, too, are left out.
        task: its name.
        lists: splits that have lists.

    Raises:
        UserError: for names that no list numbers, a number beyond the task's classes, or a folder without images.
    """
    splits = [split for split in splits if split not in lists]
    folders = {split: class_folders(root / split, EXTENSIONS, Left()) for split in splits}
    kinds = sorted({kind for names in folders.values() for kind in names})
    named = [kind for kind in kinds if not (kind.isascii() and kind.isdecimal() and len(kind) < 6)]
    number_of = {kind: place if named else int(kind) for place, kind in enumerate(kinds)}
    known = TASKS.get(task)
    if lists and named:
        raise UserError(
            f"{str(root)!r} has a list of {', '.join(lists)}, whose labels are numbers, and class folders such as "
            f"{named[0]!r}: call the folders by the numbers."
        )
    if known is not None and (beyond := [kind for kind in kinds if number_of[kind] >= known.classes]):
        raise UserError(
            f"{str(root)!r} has class folders such as {beyond[0]!r}, {len(kinds)} in all: the labels of {task} are 0 "
            f"to {known.classes - 1}."
        )
    found = {}
    for split, names in folders.items():
        listing = scan(root / split, names, EXTENSIONS, Left())
        labels = (number_of[names[label]] for label in listing.labels.tolist())
        found[split] = {f"{split}/{path}": label for path, label in zip(listing.paths, labels, strict=True)}
        if not listing.paths:
            raise UserError(f"{str(root / split)!r} holds neither a list nor class folders of images.")
    return found


def _require_agreement(lists: dict[str, dict[str, int]], root: Path) -> None:
    """Refuse lists that share images although they must not, or that share too few."""
    if {TRAIN, VAL, BOTH} <= lists.keys():
        _require_together(lists, root)
    for one, other in ((TRAIN, VAL), (TRAIN, TEST), (VAL, TEST), (BOTH, TEST)):
        if both := {*map(os.path.normpath, lists.get(one, ()))} & {*map(os.path.normpath, lists.get(other, ()))}:
            raise UserError(
                f"{one}.txt and {other}.txt in {str(root)!r} share {len(both)} images, the first {min(both)!r}: an "
                "image is trained on, chosen by or tested on, one of the three."
            )


def _require_together(lists: dict[str, dict[str, int]], root: Path) -> None:
    together, own = lists[TRAIN] | lists[VAL], lists[BOTH]
    copies = not own.keys() & together.keys()  # as NOAH's are: only the labels can be compared
    agree = Counter(own.values()) == Counter(together.values()) if copies else own == together
    if not agree:
        raise UserError(
            f"{BOTH}.txt in {str(root)!r} is not {TRAIN}.txt and {VAL}.txt together ({len(own)} images, "
            f"{len(lists[TRAIN])} and {len(lists[VAL])}): take all lists from one archive."
        )


def _classes(lists: dict[str, dict[str, int]], task: str) -> int:
    if task in TASKS:
        return TASKS[task].classes
    count = 1 + max(label for own in lists.values() for label in own.values())
    images = sum(map(len, lists.values()))
    if count > images:
        raise UserError(f"the lists of {task} number a class {count - 1}, but name {images} images: renumber them.")
    return count
