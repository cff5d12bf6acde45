"""Data-set names."""

from pathlib import Path

from losa_cache.data.builtin import NAMES, load_builtin
from losa_cache.data.digits import load_digits_split
from losa_cache.data.folder import load_folder
from losa_cache.data.kinetics400 import load_kinetics400
from losa_cache.data.places365 import load_places365
from losa_cache.data.samples import Samples
from losa_cache.data.vtab import load_vtab
from losa_cache.errors import UserError, nearest

_ON_DISK = {"folder": load_folder, "kinetics400": load_kinetics400, "places365": load_places365, "vtab": load_vtab}
OWN_NAMES = ("digits", *_ON_DISK)


def load_samples(name: str, *, split: str = "train", data_dir: Path | None = None, home: Path | None = None) -> Samples:
    """Load a split of a data set.

    Args:
        name: ``digits``, ``folder``, ``kinetics400``, ``places365``, ``vtab``, a torchvision classification set
            (``cifar100``, ``food101``, ...), or the path of a folder of class folders.
        split: ``train``, ``val`` or ``test``, as far as the set has them; of ``vtab`` ``train800val200``, ``train800``,
            ``val200`` or ``test``.
        data_dir: where the files are; for torchvision sets its root (default ``home``), for ``vtab`` the
            folder of one task.

    Raises:
        UserError: for an unknown name (with the nearest ones) or files that are not as expected.
    """
    key = _key(name)
    if key == "digits":
        return load_digits_split(split)
    if key in _ON_DISK:
        if data_dir is None:
            raise UserError(f"data set {key!r} needs --data-dir: the folder that holds it.")
        return _ON_DISK[key](data_dir, split)
    if key in NAMES:
        return load_builtin(key, data_dir or home or Path("data"), split)
    if Path(name).is_dir():
        return load_folder(Path(name), split)
    raise UserError(
        f"unknown data set {name!r}: it is no folder either{nearest(key, [*OWN_NAMES, *NAMES])}. "
        f"Known: {', '.join(OWN_NAMES)} and torchvision's {', '.join(NAMES)}."
    )


def is_name(name: str) -> bool:
    """Tell whether a data set is known by this name; else it is a folder's path."""
    return _key(name) in (*OWN_NAMES, *NAMES)


def is_embedded(name: str) -> bool:
    """Tell whether a data set comes with a package: nothing else is opened for it."""
    return _key(name) == "digits"


def _key(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
