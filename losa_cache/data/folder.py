"""A folder of class folders, with or without split folders above them."""

import os
from pathlib import Path

from losa_cache.data.samples import Samples, from_files
from losa_cache.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def load_folder(root: Path, split: str, name: str = "folder") -> Samples:
    """Read ``<root>/<split>/<class>/**/*`` or, where there are no split folders, ``<root>/<class>/**/*`` as train.

    Classes are numbered in the order of their sorted names, as torchvision's ImageFolder does.

    Raises:
        UserError: for a folder that is missing, unreadable or empty, or a split that is not there.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {str(root)!r}: --data-dir names a folder of class folders.")
    try:
        base = _split_folder(root, split)
        classes = sorted(entry.name for entry in base.iterdir() if entry.is_dir())
        files = [(path, label) for label, kind in enumerate(classes) for path in _images(base, base / kind)]
    except PermissionError as error:
        raise UserError(f"folder {error.filename!r} cannot be read: permission denied.") from error
    if not files:
        raise UserError(f"folder {str(base)!r} holds no class folders with images ({', '.join(EXTENSIONS)}).")
    return from_files(name, split, classes, base, files)


def _split_folder(root: Path, split: str) -> Path:
    present = {key: next((root / n for n in names if (root / n).is_dir()), None) for key, names in _SPLITS.items()}
    found = present.get(split) or (root / split if (root / split).is_dir() else None)
    if found is not None:
        return found
    available = [key for key, path in present.items() if path]
    if split == "train" and not available:
        return root
    raise UserError(
        f"folder {str(root)!r} has no split {split!r}; it has: {', '.join(available) or 'train (the folder itself)'}."
    )


def _images(base: Path, folder: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over an unreadable folder in silence

    found = []
    for here, _, names in os.walk(folder, followlinks=True, onerror=refuse):
        found += [os.path.relpath(os.path.join(here, n), base) for n in names if n.lower().endswith(EXTENSIONS)]
    return sorted(found)
