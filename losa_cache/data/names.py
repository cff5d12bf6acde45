"""Names of data sets, their splits, and decoders. This module imports no library, so that a command refuses at once."""

from pathlib import Path

from losa_cache.errors import UserError, nearest

ON_DISK = ("folder", "kinetics400", "places365", "vtab")
OWN_NAMES = ("digits", *ON_DISK)
_CLASSES = (
    "Caltech101 Caltech256 CIFAR10 CIFAR100 Country211 DTD EuroSAT FashionMNIST FGVCAircraft Flowers102 Food101 GTSRB",
    "ImageNet Imagenette KMNIST MNIST OxfordIIITPet RenderedSST2 StanfordCars STL10 SUN397 SVHN USPS",
)
TORCHVISION = {name.lower(): name for line in _CLASSES for name in line.split()}
"""torchvision's classification sets: the class of each, by the name that it has here."""
SPLITS = {
    "digits": ("train", "test"),
    "places365": ("train", "val"),
    "vtab": ("train800", "val200", "train800val200", "test"),
}
"""The splits of the data sets that always have the same ones. Files or torchvision say which the others have."""
PILLOW, NVJPEG = DECODERS = ("pillow", "nvjpeg")
"""What decodes image files."""


def plain(name: str) -> str:
    """Give the name that is looked up: ``Kinetics-400`` is ``kinetics400``."""
    return name.lower().replace("_", "").replace("-", "")


def is_name(name: str) -> bool:
    """Tell whether a data set is known by this name; else it is a folder's path."""
    return plain(name) in (*OWN_NAMES, *TORCHVISION)


def is_embedded(name: str) -> bool:
    """Tell whether a data set comes with a package: nothing else is opened for it."""
    return plain(name) == "digits"


def require_data_set(name: str, data_dir: str | Path | None) -> None:
    """Refuse a data set that is neither known by name nor a folder, or lies in a folder that is not named.

    Raises:
        UserError: naming the nearest ones, or asking for ``--data-dir``.
    """
    if plain(name) in ON_DISK and data_dir is None:
        raise UserError(f"data set {plain(name)!r} needs --data-dir: the folder that holds it.")
    if not is_name(name) and not Path(name).is_dir():
        known = [*OWN_NAMES, *TORCHVISION]
        raise UserError(
            f"unknown data set {name!r}: it is no folder either{nearest(plain(name), known)}. "
            f"Known: {', '.join(OWN_NAMES)} and torchvision's {', '.join(TORCHVISION)}."
        )


def require_split(name: str, split: str) -> None:
    """Refuse a split that a data set does not have, as far as its name tells.

    Raises:
        UserError: naming the splits that it has.
    """
    known = SPLITS.get(plain(name))
    if known is not None and split not in known:
        raise UserError(f"{plain(name)} has no split {split!r}: choose one of {', '.join(known)}.")


def require_decoder_name(name: str) -> None:
    """Refuse an unknown decoder.

    Raises:
        UserError: naming the known ones.
    """
    if name not in DECODERS:
        raise UserError(f"unknown decoder {name!r}: choose one of {', '.join(DECODERS)}.")
