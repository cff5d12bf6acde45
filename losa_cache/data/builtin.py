"""torchvision's built-in classification sets, by name."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from losa_cache.data.samples import Samples, hash_lines
from losa_cache.errors import UserError

_CLASSES = (
    "Caltech101 Caltech256 CIFAR10 CIFAR100 Country211 DTD EuroSAT FashionMNIST FGVCAircraft Flowers102 Food101 GTSRB",
    "ImageNet Imagenette KMNIST MNIST OxfordIIITPet RenderedSST2 StanfordCars STL10 SUN397 SVHN USPS",
)
NAMES = {name.lower(): name for line in _CLASSES for name in line.split()}


def load_builtin(name: str, root: Path, split: str) -> Samples:
    """Load a torchvision set below ``root``, downloading it there first if torchvision can.

    Sets without splits of their own (Caltech, EuroSAT, SUN397) are all ``train``.

    Raises:
        UserError: for a split that the set does not have, or a set that is not there and cannot be fetched.
    """
    kind = getattr(datasets, NAMES[name])
    parameters = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {}
    if "train" in parameters:
        _require(name, split, ("train", "test"))
        options["train"] = split == "train"
    elif "split" in parameters:
        options["split"] = split
    else:
        _require(name, split, ("train",))
    data = _open(kind, name, root, options, "download" in parameters)
    labels = _labels(data)
    ids = [f"{split}/{i:07d}" for i in range(len(labels))]
    classes = getattr(data, "classes", None) or getattr(data, "categories", None)
    pixels = getattr(data, "data", None)
    return Samples(
        name=name,
        split=split,
        classes=tuple(str(c) for c in classes) if classes else tuple(str(i) for i in range(int(labels.max()) + 1)),
        ids=ids,
        labels=labels,
        load=lambda i: data[i][0],
        fingerprint=hash_lines(
            (f"{i}\t{label}" for i, label in zip(ids, labels, strict=True)),
            b"" if pixels is None else np.ascontiguousarray(pixels).tobytes(),
        ),
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


def _labels(data: Any) -> NDArray[np.int64]:
    """Find the labels without decoding an image: torchvision keeps them under a handful of names."""
    for attribute in ("targets", "_labels", "labels", "y"):
        if len(found := getattr(data, attribute, ())) == len(data):
            return np.asarray(found, dtype=np.int64)
    pairs = getattr(data, "_samples", None) or data.samples
    return np.array([label for _, label in pairs], dtype=np.int64)
