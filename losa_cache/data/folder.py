"""A folder of class folders of images, or of videos, with or without split folders above them."""

import os
from pathlib import Path

from losa_cache.data import video
from losa_cache.data.samples import Samples, from_files
from losa_cache.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "validate"), "test": ("test",)}
"""The names that splits go by."""


def load_folder(root: Path, split: str, name: str = "folder") -> Samples:
    """Read ``<root>/<split>/<class>/**/*`` or, where there are no split folders, ``<root>/<class>/**/*`` as train.

    Classes are numbered in the order of their sorted names, as torchvision's ImageFolder does.

    Raises:
        UserError: for a folder that is missing, unreadable or empty, a split that is not there, or a mixture of images
            and videos.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {str(root)!r}: --data-dir names a folder of class folders.")
    try:
        base = _split_or_root(root, split)
        classes = sorted(entry.name for entry in base.iterdir() if entry.is_dir())
        files = [(path, label) for label, kind in enumerate(classes) for path in find(base, base / kind)]
    except PermissionError as error:
        raise UserError(f"folder {error.filename!r} cannot be read: permission denied.") from error
    if not files:
        known = f"images ({', '.join(EXTENSIONS)}) or videos ({', '.join(video.EXTENSIONS)})"
        raise UserError(f"folder {str(base)!r} holds no class folders with {known}.")
    videos = [path for path, _ in files if path.lower().endswith(video.EXTENSIONS)]
    if not videos:
        return from_files(name, split, classes, base, files)
    if len(videos) < len(files):
        image = next(path for path, _ in files if path.lower().endswith(EXTENSIONS))
        raise UserError(
            f"folder {str(base)!r} holds videos ({videos[0]!r}) and images ({image!r}): keep one kind in it."
        )
    return video.from_videos(name, split, classes, base, files)


def split_folder(root: Path, split: str) -> Path | None:
    """Find a split's folder by one of the names that the split goes by."""
    return next((root / name for name in SPLITS.get(split, (split,)) if (root / name).is_dir()), None)


def find(base: Path, folder: Path) -> list[str]:
    """List the images and videos below a folder, as sorted paths relative to ``base``.

    Raises:
        OSError: for a folder below it that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over an unreadable folder in silence

    found = []
    for here, _, names in os.walk(folder, followlinks=True, onerror=refuse):
        known = [name for name in names if name.lower().endswith(EXTENSIONS + video.EXTENSIONS)]
        found += [os.path.relpath(os.path.join(here, name), base) for name in known]
    return sorted(found)


def _split_or_root(root: Path, split: str) -> Path:
    if (found := split_folder(root, split)) is not None:
        return found
    available = [key for key in SPLITS if split_folder(root, key)]
    if split == "train" and not available:
        return root
    raise UserError(
        f"folder {str(root)!r} has no split {split!r}; it has: {', '.join(available) or 'train (the folder itself)'}."
    )
