"""ImageNet-1k in the layouts that people have: of the archives, of Kaggle, or as torchvision unpacked it."""

import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from losa_cache.data.label_files import read_lines
from losa_cache.data.left import Left
from losa_cache.data.names import require_split
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, from_paths
from losa_cache.data.scan import HERE, class_folders, scan
from losa_cache.data.sources import builtin
from losa_cache.data.sources.folder import EXTENSIONS
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError
from losa_cache.extras import extra
from losa_cache.outside import UnreadableError, read_file

SPEC = SourceSpec(splits=("train", "val"))

NAME = "imagenet"

_ROOTS = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # the last two: of Kaggle's archive
_SYNSET = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_SOLUTION = "LOC_val_solution.csv"
_DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
_UNPACKED = "meta.bin"  # torchvision writes it
_HINT = f"set --data-dir, or put {_DEVKIT} or {_SOLUTION} beside the images"


def load(request: Request) -> Samples:
    """Read ``train/n01440764/*.JPEG``, and ``val`` in such folders or as the flat folder that the archive has.

    The folder may be that of Kaggle's archive (``ILSVRC/Data/CLS-LOC``). The classes of a flat ``val`` come from
    Kaggle's ``LOC_val_solution.csv`` or from the devkit, unpacked or not. Classes are called by their synsets, in
    sorted order, which is the usual numbering. What torchvision has unpacked (``meta.bin``), or can unpack, is left to
    it, with its names.

    Raises:
        UserError: for another split, images that are not there, or an image of which nothing says the class.
    """
    root, split = request.folder or request.home or Path("data"), request.split
    require_split(NAME, split)
    base = next((root / name for name in _ROOTS if (root / name / split).is_dir()), None)
    folder = None if base is None else base / split
    synsets = [] if folder is None else _synsets(folder)
    if folder is None or (synsets and (root / _UNPACKED).is_file()):
        return builtin.load(request)
    left = Left(base=str(folder))
    trained = _synsets(folder.parent / "train") if split == "val" else []
    if synsets:
        listing = scan(folder, synsets, EXTENSIONS, left)
        classes = sorted({*synsets, *trained})
        own = [synsets[label] for label in listing.labels.tolist()]
    else:
        listing = scan(folder, [HERE], EXTENSIONS, left)
        own, known = _looked_up(root, listing.paths)
        classes = trained or sorted(known)
    if not listing.paths:
        raise UserError(f"{str(folder)!r} holds no images: set --data-dir.")
    numbers = {synset: number for number, synset in enumerate(classes)}
    if unknown := next((synset for synset in own if synset not in numbers), None):
        raise UserError(
            f"{str(folder)!r} holds images of {unknown}, and 'train' beside it none: keep one set of classes."
        )
    labels = np.array([numbers[synset] for synset in own], dtype=np.int64)
    samples = from_paths(NAME, split, classes, folder, listing.paths, labels, listing.sizes, pixels=request.pixels)
    return replace(samples, left=left)


def _synsets(folder: Path) -> list[str]:
    """Give the class folders of a split; none if it is flat or not there."""
    if not folder.is_dir():
        return []
    return [name for name in class_folders(folder, EXTENSIONS, Left()) if _SYNSET.fullmatch(name)]


def _looked_up(root: Path, names: list[str]) -> tuple[list[str], set[str]]:
    """Give the synset of each validation image, and all that there are.

    Raises:
        UserError: if nothing says them, or for an image that has none.
    """
    known = _of_kaggle(root) or _of_devkit(root)
    if not known:
        raise UserError(f"{str(root)!r} holds validation images without class folders, and no labels of them: {_HINT}.")
    found = [known.get(int(match[1])) if (match := _VALIDATION.fullmatch(name)) else None for name in names]
    if None in found:
        raise UserError(f"nothing says the class of {names[found.index(None)]!r} of {str(root)!r}: {_HINT}.")
    return [synset for synset in found if synset is not None], {*known.values()}


def _of_kaggle(root: Path) -> dict[int, str]:
    """Read ``ILSVRC2012_val_00048981,n03995372 85 1 499 272`` ..."""
    path = next((path for folder in ("", "ILSVRC") if (path := root / folder / _SOLUTION).is_file()), None)
    if path is None:
        return {}
    found = {}
    try:
        for number, line in read_lines(path)[1:]:
            name, _, boxes = line.partition(",")
            match, synset = _VALIDATION.fullmatch(f"{name}.JPEG"), boxes.partition(" ")[0]
            if match is None or not _SYNSET.fullmatch(synset):
                raise UserError(f"line {number} of {str(path)!r} is not 'ILSVRC2012_val_...,n...': {line[:80]!r}.")
            found[int(match[1])] = synset
    except UnreadableError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): fetch it again.") from error
    return found


def _of_devkit(root: Path) -> dict[int, str]:
    """Read the number of each validation image's class, and which synset has which number."""
    truth, meta = (_of_devkit_file(root, name) for name in (_TRUTH, _META))
    if truth is None or meta is None:
        return {}
    with extra("scipy", f"the labels in {_DEVKIT} need scipy", "imagenet"):
        from scipy.io import loadmat
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        synset_of = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if not one["num_children"]}
        return {place: synset_of[int(line)] for place, line in enumerate(truth.split(), 1)}
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise UserError(f"{_DEVKIT} in {str(root)!r} cannot be read ({error}): fetch it again.") from error


def _of_devkit_file(root: Path, name: str) -> bytes | None:
    try:
        if (path := root / _DEVKIT / name).is_file():
            return read_file(path)
        if not (path := root / f"{_DEVKIT}.tar.gz").is_file():
            return None
        with tarfile.open(path, "r:gz") as archive:
            file = archive.extractfile(f"{_DEVKIT}/{name}")
            return None if file is None else file.read()
    except (UnreadableError, tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): fetch it again.") from error
