"""iNaturalist: 2021 in its class folders, other years by their lists of images in COCO's form."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from losa_cache.data.left import Left
from losa_cache.data.names import require_split
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, from_paths
from losa_cache.data.scan import class_folders, scan
from losa_cache.data.sources.folder import EXTENSIONS
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, read_file

SPEC = SourceSpec(needs_folder=True, splits=("train", "train_mini", "val"))

NAME = "inaturalist"

_FOLDERS = {
    "train": ("2021_train", "train"),
    "train_mini": ("2021_train_mini", "train_mini"),
    "val": ("2021_valid", "2021_val", "valid", "val"),
}
_NUMBERED = re.compile(r"(\d{5})_.+")  # 00000_Animalia_Annelida_...: the number is the label
_MOST_BYTES = 4 * 1024**3  # of a list; that of 2021 has 1 GB


Numbered = tuple[Path, dict[int, str]]
"""A folder, and its class folders by their numbers."""


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _List(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def other_splits(request: Request) -> tuple[str, ...]:
    """List the splits that share no image with that of a request: ``train`` holds ``train_mini``."""
    return ("train", "train_mini") if request.split == "val" else ("val",)


def load(request: Request) -> Samples:
    """Read ``2021_train/00000_.../*.jpg``, of which the number is the label, or ``train2018.json`` and the images that
    it names, such as ``train_val2018/Plantae/7477/x.jpg``.

    Folders of 2021 may be called ``train`` and ``val``, too. Where they are there, no list is read. Classes of a list
    have the order of their ids.

    Raises:
        UserError: for a split that is not there, a list that is not of this form, or one with a path that leads out.
    """
    root, split = request.root, request.split
    require_split(NAME, split)
    folders = {name: found for name in SPEC.splits if (found := _numbered_folder(root, name)) is not None}
    if split in folders:
        return _of_folders(request, folders)
    lists = sorted(root.glob(f"{split}20??.json")) + [path for path in [root / f"{split}.json"] if path.is_file()]
    if len(lists) > 1:
        raise UserError(f"{str(root)!r} holds {', '.join(path.name for path in lists)}: keep one year in a folder.")
    if not lists:
        known = ", ".join(_FOLDERS[split])
        raise UserError(
            f"{str(root)!r} holds neither {split}20??.json nor class folders 00000_... in {known}: set --data-dir."
        )
    return _of_list(request, lists[0])


def _numbered_folder(root: Path, split: str) -> Numbered | None:
    """Find the folder of a split that holds numbered class folders."""
    folders = (root / name for name in _FOLDERS[split])
    return next(
        ((folder, numbers) for folder in folders if folder.is_dir() and (numbers := _numbers(folder))),
        None,
    )


def _numbers(folder: Path) -> dict[int, str]:
    """Give the class folders by their numbers; none if others are among them."""
    names = class_folders(folder, EXTENSIONS, Left())
    found = {int(match[1]): name for name in names if (match := _NUMBERED.fullmatch(name))}
    return found if len(found) == len(names) else {}


def _of_folders(request: Request, folders: Mapping[str, Numbered]) -> Samples:
    """Read class folders. The numbers that neither training nor validation has keep their places.

    Raises:
        UserError: for a number that means different classes in two splits.
    """
    folder, numbers = folders[request.split]
    known = dict(numbers)
    for other, theirs in folders.values():
        for number, name in theirs.items():
            if known.setdefault(number, name) != name:
                raise UserError(
                    f"{str(folder)!r} and {str(other)!r} give one number to {known[number]!r} and {name!r}: take all "
                    "splits of one year."
                )
    classes = [known.get(number, f"{number:05d}") for number in range(max(known) + 1)]
    left = Left(base=str(folder))
    listing = scan(folder, [numbers[number] for number in sorted(numbers)], EXTENSIONS, left)
    labels = np.array(sorted(numbers), dtype=np.int64)[listing.labels]
    samples = from_paths(
        NAME, request.split, classes, folder, listing.paths, labels, listing.sizes, pixels=request.pixels
    )
    return replace(samples, left=left)


def _of_list(request: Request, path: Path) -> Samples:
    try:
        listed = msgspec.json.decode(read_file(path, at_most=_MOST_BYTES), type=_List)
    except (UnreadableError, msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): fetch it again.") from error
    for what, numbers in (
        ("two categories the id", [category.id for category in listed.categories]),
        ("two images the id", [image.id for image in listed.images]),
        ("two categories to the image", [annotation.image_id for annotation in listed.annotations]),
    ):
        if (twice := next((number for number, count in Counter(numbers).items() if count > 1), None)) is not None:
            raise UserError(f"{str(path)!r} gives {what} {twice}: fetch it again.")
    categories = sorted(listed.categories, key=lambda category: category.id)
    names = [category.name for category in categories]
    if len({*names}) < len(names):
        names = [f"{category.id} {category.name}" for category in categories]
    number_of = {category.id: number for number, category in enumerate(categories)}
    label_of = {annotation.image_id: annotation.category_id for annotation in listed.annotations}
    labels = []
    for image in listed.images:
        if image.file_name.startswith("/") or ".." in Path(image.file_name).parts:
            raise UserError(f"{str(path)!r} names {image.file_name!r}, which leads out of the folder: fetch it again.")
        number = number_of.get(label_of.get(image.id, -1))
        if number is None:
            raise UserError(f"{str(path)!r} gives {image.file_name!r} no category of its own: fetch it again.")
        labels.append(number)
    if not labels:
        raise UserError(f"{str(path)!r} names no images: fetch it again.")
    paths = [image.file_name for image in listed.images]
    return from_paths(
        NAME, request.split, names, request.root, paths, np.array(labels, dtype=np.int64), pixels=request.pixels
    )
