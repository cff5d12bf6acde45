"""torchvision's built-in classification sets, by name."""

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from losa_cache.data.picture import load_image
from losa_cache.data.pixel_rules import AS_DECLARED
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, hash_lines
from losa_cache.data.scan import hidden
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError

SPEC = SourceSpec(
    names=(
        "Caltech101",
        "Caltech256",
        "CIFAR10",
        "CIFAR100",
        "Country211",
        "DTD",
        "EuroSAT",
        "FashionMNIST",
        "FGVCAircraft",
        "Flowers102",
        "Food101",
        "GTSRB",
        "Imagenette",
        "KMNIST",
        "MNIST",
        "OxfordIIITPet",
        "RenderedSST2",
        "StanfordCars",
        "STL10",
        "SUN397",
        "SVHN",
        "USPS",
    )
)

CLASSES = {name.lower(): name for name in (*SPEC.names, "ImageNet")}
"""torchvision's classification sets: the class of each, by the name that it has here. For ImageNet, ``imagenet.py``
is asked first."""


def load(request: Request) -> Samples:
    """Load a torchvision set, downloading it first if torchvision can.

    It lies below the folder of the request, below ``home`` where none is named, or below ``data``.

    Sets without splits (Caltech, EuroSAT, SUN397) count as ``train`` as a whole.

    Raises:
        UserError: for a split that the set does not have, or a set that is not there and cannot be fetched.
    """
    name, split, root = request.name, request.split, request.folder or request.home or Path("data")
    collection = getattr(datasets, CLASSES[name])
    parameters = inspect.signature(collection.__init__).parameters
    options: dict[str, Any] = {}
    if "train" in parameters:
        _require(name, split, ("train", "test"))
        options["train"] = split == "train"
    elif "split" in parameters:
        options["split"] = split
    else:
        _require(name, split, ("train",))
    data = _open(collection, name, root, options, "download" in parameters)
    labels = _labels(data)
    ids = [f"{split}/{i:07d}" for i in range(len(labels))]
    classes = getattr(data, "classes", None) or getattr(data, "categories", None)
    pixels = getattr(data, "data", None)
    files = None if pixels is not None else _files(data, name)
    if files is not None:
        _require_clean(files, root)
    return Samples(
        name=name,
        split=split,
        classes=tuple(str(c) for c in classes) if classes else tuple(str(i) for i in range(int(labels.max()) + 1)),
        ids=ids,
        labels=labels,
        load=(lambda i: data[i][0]) if files is None else (lambda i: load_image(files[i], request.pixels)),
        fingerprint=hash_lines(
            (f"{i}\t{label}" for i, label in zip(ids, labels, strict=True)),
            b"" if pixels is None else np.ascontiguousarray(pixels).tobytes(),
        ),
        file=None if files is None else files.__getitem__,
        pixels=AS_DECLARED if files is None else request.pixels,
    )


def _require(name: str, split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise UserError(f"{name} has no split {split!r}: choose one of {', '.join(known)}.")


def _open(kind: Any, name: str, root: Path, options: dict[str, Any], downloads: bool) -> Any:
    try:
        try:
            return kind(str(root), **options)
        except (RuntimeError, FileNotFoundError):
            if not downloads:
                raise
            root.mkdir(parents=True, exist_ok=True)
            return kind(str(root), download=True, **options)
    except ValueError as error:  # torchvision's own sentence about the split
        raise UserError(f"{name}: {error}") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} is not below {str(root)!r} and could not be fetched ({reason}): set --data-dir."
        ) from error


def _files(data: Any, name: str) -> list[Path]:
    """Find the file of each image. torchvision keeps the paths in one of a few attributes; Caltech's follow from
    numbers.
    """
    if name in ("caltech101", "caltech256"):
        pattern = "image_{image:04d}.jpg" if name == "caltech101" else "{label:03d}_{image:04d}.jpg"
        folder = Path(data.root) / f"{name.removeprefix('caltech')}_ObjectCategories"
        pairs = zip(data.y, data.index, strict=True)
        return [folder / data.categories[y] / pattern.format(label=y + 1, image=image) for y, image in pairs]
    for attribute in ("_image_files", "_images"):
        if files := getattr(data, attribute, None):
            return [Path(file) for file in files]
    return [Path(file) for file, _ in getattr(data, "_samples", None) or data.samples]


def _require_clean(files: list[Path], root: Path) -> None:
    """Refuse folders that torchvision takes for classes by mistake: hidden ones, and one folder under two names."""
    folders = dict.fromkeys(file.parent for file in files)
    met: dict[str, Path] = {}
    for folder in folders:
        parts = folder.relative_to(root).parts if folder.is_relative_to(root) else folder.parts[-1:]
        if any(map(hidden, parts)):
            raise UserError(f"folder {str(folder)!r} is hidden or a system's, and no part of the data set: remove it.")
        other = met.setdefault(os.path.realpath(folder), folder)
        if other is not folder:
            raise UserError(f"{str(other)!r} and {str(folder)!r} are one folder, by a link: remove the link.")
    for file in files:
        if hidden(file.name):
            raise UserError(f"{str(file)!r} is hidden or a system's, and no part of the data set: remove it.")


def _labels(data: Any) -> NDArray[np.int64]:
    """Find the labels without decoding an image. torchvision keeps them in one of a few attributes."""
    for attribute in ("targets", "_labels", "labels", "y"):
        if len(found := getattr(data, attribute, ())) == len(data):
            return np.asarray(found, dtype=np.int64)
    pairs = getattr(data, "_samples", None) or data.samples
    return np.array([label for _, label in pairs], dtype=np.int64)
