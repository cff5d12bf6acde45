"""Decode an image file to a picture of 8 bits, upright if that is requested."""

import logging
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from losa_cache.data.pixel_rules import AS_DECLARED, PixelRules

log = logging.getLogger(__name__)

TURN = "losa_cache.turn"
"""Key of ``Image.info``: how a video's frame is to be turned, as ``Image.Transpose``."""

_ORIENTATION = 0x0112  # the number of the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _FORMAT = 258, 259, 262, 284, 339  # numbers of TIFF tags
_TILE = (322, 323)  # width and height
_WHITE_IS_ZERO, _UNCOMPRESSED, _APART, _SIGNED = 0, 1, 2, 2  # values of them
_DARK = 4095  # where no value of 16 bits lies above it, a scanner of 12 bits may have written them unscaled

_noted: set[str] = set()


def load_image(path: Path, rules: PixelRules = AS_DECLARED, *, max_pixels: int | None = None) -> Image.Image:
    """Decode a file fully, so that a truncated file fails here and not in the transform. Greys are scaled to 8 bits.

    If the file has several pictures (animations, TIFF pages), the first one is decoded. Colour profiles are not
    applied, and the transform drops transparency, as torchvision and timm do.

    Args:
        path: of the file.
        rules: how values that are not 8-bit RGB become pixels.
        max_pixels: a larger picture, or one stored in larger tiles, is refused before it is decoded.

    Raises:
        OSError, ValueError: or whatever else the decoder raises.
    """
    require_regular(path)
    with Image.open(path) as image:
        if max_pixels is not None and (large := _larger(image, max_pixels)):
            raise ValueError(f"it has {large} (--max-pixels)")
        return _decode(image, str(path))


def require_regular(path: Path) -> None:
    """Refuse what is no regular file.

    Raises:
        OSError: if it is none, or not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for its writer
        raise OSError("it is no regular file")


def read_image(
    file: BinaryIO, rules: PixelRules = AS_DECLARED, *, max_pixels: int, formats: tuple[str, ...]
) -> Image.Image:
    """Decode a picture from outside, as :func:`load_image` does.

    Args:
        file: its bytes.
        rules: how values that are not 8-bit RGB become pixels.
        max_pixels: a larger picture, or one stored in larger tiles, is refused before it is decoded.
        formats: Pillow's names of the decoders that may be tried.

    Raises:
        OverflowError: if it is too large.
        OSError, ValueError: or whatever else the decoder raises.
    """
    Image.init()  # or Pillow knows only a few of its decoders by name
    with Image.open(file, formats=formats) as image:
        if large := _larger(image, max_pixels):
            raise OverflowError(large)
        return _decode(image, "")


def _larger(image: Image.Image, max_pixels: int) -> str:
    """Say how large a picture is, or a tile that it is stored in, if that is more than the limit."""
    tags: Any = getattr(image, "tag_v2", {})
    tile = [max(np.atleast_1d(tags.get(tag, 1))) for tag in _TILE]
    sizes = ((width, height) for width, height in (image.size, tile) if width * height > max_pixels)
    return next((f"{width} x {height} pixels, more than {max_pixels}" for width, height in sizes), "")


def _decode(image: ImageFile.ImageFile, name: str) -> Image.Image:
    _require_readable(image)
    image.filename = ""  # or Pillow maps the file, and shears a TIFF that its orientation turns on its side
    image.load()
    return eight_bits(image, name)


def eight_bits(image: Image.Image, name: str = "") -> Image.Image:
    """Scale greys of more than 8 bits to 8: black is 0, and white is the largest value that the file declares.

    That is 65535 for 16 bits, 4095 for TIFF's 12 bits, and PGM's maxval (Pillow scales it to 65535). The values of a
    picture have no influence: otherwise pictures of one data set would be scaled by different factors.

    Args:
        image: of any mode; one of at most 8 bits a channel is returned as it is.
        name: of its file, for a note that 16-bit values may not be scaled to their range.

    Raises:
        ValueError: for values whose white is not declared: floating point, 32 bits, signed.
    """
    if image.mode in _SIXTEEN_BITS:
        white, inverted = _declared(image)
    elif image.mode == "I" and image.format in ("PPM", "PNG"):  # older versions of Pillow read PNG so
        white, inverted = 65535, False
    elif image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(f"it holds {kind} greys, of which no value is declared to be white: save it in 8 or 16 bits")
    else:
        return image
    values = np.asarray(image).astype(np.int64)
    _note_dark(values, white, name)
    scaled = ((values.clip(0, white) * 255 + white // 2) // white).astype(np.uint8)
    grey = Image.fromarray(255 - scaled if inverted else scaled)
    grey.info = dict(image.info)
    return grey


def converted(image: Image.Image, mode: str) -> Image.Image:
    """Convert to ``L`` or ``RGB`` by :func:`eight_bits` and then by Pillow.

    Raises:
        ValueError: for modes that cannot be converted.
    """
    return eight_bits(image).convert(mode)


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation, or its video's display matrix, says."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Say how a picture is to be turned; ``None``: it is upright."""
    turn: Image.Transpose | None = image.info[TURN] if TURN in image.info else _TURNS.get(exif_orientation(image))
    return turn


def stored_frame(path: Path) -> tuple[tuple[int, int], Image.Transpose | None]:
    """Read width and height of a picture as it is stored, and how it is to be turned, without its pixels.

    Pillow turns a TIFF file itself: that is decoded, and counts as stored upright.

    Raises:
        OSError, ValueError: or whatever else the decoder raises.
    """
    require_regular(path)
    with Image.open(path) as image:
        if image.format == "TIFF":
            return _decode(image, "").size, None
        return image.size, turn_of(image)


def exif_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 if it is missing or damaged.

    Pillow turns a TIFF file itself when it loads it, and then forgets the tag.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever broken metadata raises, the picture is there
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _require_readable(image: Image.Image) -> None:
    """Refuse TIFF files that Pillow misreads silently: signed bytes, and uncompressed planes of 16 bits."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode not in ("I", "F") and _SIGNED in np.atleast_1d(tags.get(_FORMAT, 1)):
        raise ValueError("it holds signed values, of which none is declared to be white: save it in 8 or 16 bits")
    apart = tags.get(_PLANES) == _APART and tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    if apart and max(np.atleast_1d(tags.get(_BITS, 1))) > 8:
        raise ValueError("it holds uncompressed planes of 16 bits, which Pillow misreads: save it with one plane")


def _declared(image: Image.Image) -> tuple[int, bool]:
    """Say which value of a 16-bit picture is white, and whether TIFF stores it inverted."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))
    return 2 ** (bits[0] if isinstance(bits, tuple) else int(bits)) - 1, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _note_dark(values: np.ndarray[Any, np.dtype[np.int64]], white: int, name: str) -> None:
    """Warn once that a picture uses only a small part of its range: it may have fewer bits than its file declares."""
    if white > _DARK and name and "dark" not in _noted and 0 < values.max() <= _DARK:
        _noted.add("dark")
        log.warning(
            "%r holds 16-bit greys, none of them above %d: it is read as dark as the file declares, 65535 being white. "
            "If the scans have fewer bits, multiply their values to the full range. (Said of the first one only.)",
            name,
            values.max(),
        )
