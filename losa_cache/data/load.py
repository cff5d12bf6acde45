"""Data-set names."""

from pathlib import Path

from losa_cache.data.builtin import load_builtin
from losa_cache.data.digits import load_digits_split
from losa_cache.data.folder import load_folder
from losa_cache.data.kinetics400 import load_kinetics400
from losa_cache.data.names import ON_DISK, TORCHVISION, plain, require_data_set
from losa_cache.data.places365 import load_places365
from losa_cache.data.samples import Samples
from losa_cache.data.vtab import load_vtab

_ON_DISK = dict(zip(ON_DISK, (load_folder, load_kinetics400, load_places365, load_vtab), strict=True))


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
    key = plain(name)
    require_data_set(name, data_dir)
    if key == "digits":
        return load_digits_split(split)
    if data_dir is not None and key in _ON_DISK:
        return _ON_DISK[key](data_dir, split)
    if key in TORCHVISION:
        return load_builtin(key, data_dir or home or Path("data"), split)
    return load_folder(Path(name), split)
