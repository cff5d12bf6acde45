"""PNG and TIFF files of which Pillow gives 8 bits, too few channels, or nothing: all bits of all channels."""

import logging
import struct
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from losa_cache.data.values import Trust, Values, limits_of, require_page
from losa_cache.extras import MissingExtraError, extra

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RGB, WHITE_IS_ZERO, BLACK_IS_ZERO = 2, 0, 1  # photometric interpretations
_ALPHA = (1, 2)  # kinds of extra samples
_AXES = {"YX", "YXS", "SYX"}


def read_png(file: BinaryIO) -> Values:
    """Read a PNG file of 16 bits by torchvision: grey, grey and alpha, RGB or RGBA.

    Raises:
        RuntimeError: as torchvision does, for a damaged file.
    """
    import torch  # not before: what only lists a data set need not wait for it
    from torchvision.io import ImageReadMode, decode_png

    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    array = decode_png(content, ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
    shown = (1,) if array.shape[-1] < 3 else (1, 2, 3)
    return Values(array, *limits_of(array.dtype), "declared", shown)


def read_tiff(file: BinaryIO, page: int, *, require_size: Callable[[int, int], None]) -> tuple[Values, int]:
    """Read a page of a TIFF file by tifffile.

    Args:
        file: opened.
        page: from 1.
        require_size: refuses a width and height that are too large.

    Returns:
        values, and the orientation that the page names, 1 to 8.

    Raises:
        UnidentifiedImageError: if it is no TIFF file, or a damaged one.
        ValueError: if tifffile is not installed, and for a page that is not there, axes beyond width, height and
            channels, or values that are no numbers.
    """
    try:
        with extra("tifffile", "Pillow does not read this TIFF file, and tifffile may", "medical"):
            from tifffile import TiffFile, TiffFileError
    except MissingExtraError as error:  # the file may as well be damaged
        raise ValueError(str(error).removesuffix(".")) from error

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says there is raised, too
    try:
        opened = TiffFile(file)
        count = len(opened.pages)
    except (TiffFileError, struct.error) as error:
        raise UnidentifiedImageError(f"cannot identify TIFF file: {error}") from error
    with opened as tiff:
        if not count:
            raise UnidentifiedImageError("cannot identify TIFF file: it has no pages")
        require_page(page, count)
        own = tiff.pages[page - 1].aspage()
        require_size(own.imagewidth, own.imagelength * max(1, own.samplesperpixel // 4))
        require_size(own.tilewidth, own.tilelength)
        if own.axes not in _AXES or own.dtype is None or own.dtype.kind not in "iuf":
            raise ValueError(f"its axes are {own.axes} and its values of the type {own.dtype}: save it as a picture")
        array = own.asarray()
        orientation = own.tags.valueof(274, 1)
    if own.axes == "SYX":
        array = np.moveaxis(array, 0, -1)
    array = array.reshape(*array.shape[:2], -1)
    alpha = sum(kind in _ALPHA for kind in own.extrasamples)
    shown = (1, 2, 3) if own.photometric == RGB else (1,) if array.shape[-1] - alpha == 1 else ()
    if own.photometric not in (RGB, WHITE_IS_ZERO, BLACK_IS_ZERO):
        shown = ()
    limits = limits_of(array.dtype, own.bitspersample if array.dtype.kind != "f" else None)
    trust: Trust = "declared" if array.dtype.kind == "u" and array.dtype.itemsize <= 2 else "type"
    inverted = own.photometric == WHITE_IS_ZERO
    return Values(array, *limits, trust, shown, inverted), int(orientation)


def eight_bit_colours(image: Image.Image) -> bool:
    """Tell whether a picture that is opened, and not loaded, has colours of 16 bits, of which Pillow takes 8."""
    tile = image.tile[0] if image.tile else None  # type: ignore[attr-defined]
    if image.mode not in ("RGB", "RGBA", "CMYK", "LA") or tile is None:
        return False
    raw = tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0]
    return ";16" in str(raw)
