"""Read one mask or one depth map from its file, as an array of the pixels that the file stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from losa_cache.outside import open_file
from losa_cache.targets.target_set import DEPTH, IGNORED, MASK

MASKS, DEPTHS = (".png",), (".png", ".npy", ".tif", ".tiff")
MILLIMETRES = 1000  # of 16-bit pictures, as NYU Depth v2 and ScanNet have them
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_STRETCHED = {2: 85, 4: 17}  # Pillow brings greys of fewer than 8 bits to 0 ... 255


def read_mask(stored: Path | BinaryIO) -> NDArray[np.uint8]:
    """Read the class numbers of a mask, ``(height, width)``: those of its palette, or its greys.

    Raises:
        UnreadableError, OSError, ValueError: or whatever else the decoder raises.
    """
    with _opened(stored) as file, Image.open(file, formats=("PNG",)) as image:
        if image.mode not in ("1", "L", "P", *_DEEP):
            raise ValueError(f"it is a picture of mode {image.mode}: a mask holds one class number a pixel")
        values = np.asarray(image)
        file.seek(24)
        bits = file.read(1)[0]  # behind the size in PNG's first chunk
    if image.mode == "L":
        values = values // _STRETCHED.get(bits, 1)
    if values.size and int(values.max()) > IGNORED:
        raise ValueError(f"it holds the value {values.max()}: class numbers are at most {IGNORED - 1}")
    return values.astype(np.uint8)


def _opened(stored: Path | BinaryIO) -> BinaryIO:
    return open_file(stored) if isinstance(stored, Path) else stored


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read a depth map in metres, ``(height, width)``; NaN where nothing was measured.

    16-bit greys are millimetres, floats are metres. What is 0, negative or not finite was not measured.

    Raises:
        UnreadableError, OSError, ValueError: or whatever else the decoder raises.
    """
    values = _array(path) if path.suffix.lower() == ".npy" else _picture(path)
    metres = values.astype(np.float32)
    if values.dtype.kind != "f":
        metres /= MILLIMETRES
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(np.nan))


def _array(path: Path) -> NDArray[Any]:
    open_file(path).close()  # no pipe, no device
    values = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: no memory for what the file does not hold
    if values.dtype.kind != "f" or values.ndim != 2:
        raise ValueError(f"it is an array of {values.dtype} {values.shape}: a depth map is of floats (height, width)")
    return np.array(values)


def _picture(path: Path) -> NDArray[Any]:
    with open_file(path) as file, Image.open(file, formats=("PNG", "TIFF")) as image:
        if image.mode not in ("F", *_DEEP) or (image.mode == "I" and image.format == "TIFF"):
            raise ValueError(f"it is a picture of mode {image.mode}: a depth map has 16 bits, or floats in a TIFF file")
        return np.asarray(image).copy()


READERS: dict[str, Callable[[Path], NDArray[Any]]] = {MASK: read_mask, DEPTH: read_depth}
SUFFIXES = {MASK: MASKS, DEPTH: DEPTHS}
