"""Places365-Standard and Places365-Challenge in the layout of their own archives."""

from pathlib import Path

from losa_cache.data.label_files import read_list
from losa_cache.data.names import require_split
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, from_files
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError

SPEC = SourceSpec(needs_folder=True, splits=("train", "train-challenge", "val"))

_LISTS = {
    "train": "places365_train_standard.txt",
    "train-challenge": "places365_train_challenge.txt",
    "val": "places365_val.txt",
}
_CATEGORIES = "categories_places365.txt"
_FOLDERS = {
    "train": ("data_256_standard", "data_large_standard", "data_256", "data_large"),
    "train-challenge": ("data_256_challenge", "data_large_challenge", "data_256", "data_large"),
    "val": ("val_256", "val_large"),
}


def other_splits(request: Request) -> tuple[str, ...]:
    """List the splits that share no image with that of a request: the challenge holds the standard training images."""
    return ("train", "train-challenge") if request.split == "val" else ("val",)


def load(request: Request) -> Samples:
    """Read the list of a split (lines ``/a/airfield/00000001.jpg 0``) and the image folder that is there.

    ``train`` is the standard training set, ``train-challenge`` the eight million images of the challenge.

    Raises:
        UserError: for another split, a missing list or image folder, or a line that does not parse.
    """
    root, split = request.root, request.split
    require_split("places365", split)
    folder = next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"{str(root)!r} holds none of the image folders {', '.join(_FOLDERS[split])}: set --data-dir.")
    categories = _read(root / _CATEGORIES)
    for place, (number, name, label) in enumerate(categories):
        if label != place:
            raise UserError(
                f"line {number} of {_CATEGORIES} gives {name!r} the number {label}, where {place} comes next: number "
                "the categories from 0 in their order."
            )
    classes = [name.removeprefix("/") for _, name, _ in categories]
    files = []
    for number, name, label in _read(root / _LISTS[split]):
        if not 0 <= label < len(classes) or ".." in Path(name).parts:
            raise UserError(f"line {number} of {_LISTS[split]} cannot be right: '{name} {label}'.")
        files.append((name.lstrip("/"), label))
    if not files:
        raise UserError(f"{_LISTS[split]} names no images: set --data-dir.")
    return from_files("places365", split, classes, folder, files, pixels=request.pixels)


def _read(path: Path) -> list[tuple[int, str, int]]:
    return read_list(path, whose="Places365", hint="set --data-dir")
