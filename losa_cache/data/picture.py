"""Decode an image file to a picture of 8 bits, upright if that is requested."""

import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from losa_cache.data.all_bits import TIFF_MARKS, eight_bit_colours, read_png, read_tiff
from losa_cache.data.dicom import is_dicom, read_dicom
from losa_cache.data.nifti import is_nifti, read_nifti
from losa_cache.data.pixel_rules import AS_DECLARED, PixelRules
from losa_cache.data.values import MissingChannelError, Values, limits_of, picture_of, require_page, require_used, taken

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
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _FORMAT = 258, 259, 262, 277, 284, 339  # numbers of TIFF tags
_TILE = (322, 323)  # width and height
_WHITE_IS_ZERO, _UNCOMPRESSED, _APART, _SIGNED = 0, 1, 2, 2  # values of them
_HEAD = 1024  # bytes that tell what a file is
_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
"""What a colour profile calls the colours of a picture."""


class _TooLargeError(OverflowError):
    """Says how large a picture is."""


def load_image(path: Path, rules: PixelRules = AS_DECLARED, *, max_pixels: int | None = None) -> Image.Image:
    """Decode a file fully, so that a truncated file fails here and not in the transform, to 8 bits a channel.

    What a file holds decides how it is read, not its name: whatever Pillow reads, DICOM, NIfTI, and TIFF files that
    Pillow does not read. The transform drops transparency, as torchvision and timm do.

    Args:
        path: of the file.
        rules: how values that are not 8-bit RGB become pixels.
        max_pixels: a larger picture, or one stored in larger tiles, is refused before it is decoded.

    Raises:
        OSError, ValueError: or whatever else the decoder raises.
        UserError: if a library is missing that the file needs.
    """
    require_regular(path)
    with path.open("rb") as file:
        try:
            return _read(file, rules, max_pixels, None)
        except _TooLargeError as error:
            raise ValueError(f"it has {error} (--max-pixels)") from error
        except UnidentifiedImageError as error:
            raise UnidentifiedImageError(f"cannot identify image file {str(path)!r}") from error


def require_regular(path: Path) -> None:
    """Refuse what is no regular file.

    Raises:
        OSError: if it is none, or not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for its writer
        raise OSError("it is no regular file")


def read_image(
    file: BinaryIO,
    rules: PixelRules = AS_DECLARED,
    *,
    max_pixels: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Decode a picture of which the bytes are given, as :func:`load_image` does.

    Args:
        file: its bytes.
        rules: how values that are not 8-bit RGB become pixels.
        max_pixels: a larger picture, or one stored in larger tiles, is refused before it is decoded.
        formats: Pillow's names of the decoders that may be tried; ``None``: all, DICOM and NIfTI too.

    Raises:
        OverflowError: if it is too large.
        OSError, ValueError: or whatever else the decoder raises.
    """
    Image.init()  # or Pillow knows only a few of its decoders by name
    return _read(file, rules, max_pixels, formats)


def _read(file: BinaryIO, rules: PixelRules, max_pixels: int | None, formats: tuple[str, ...] | None) -> Image.Image:
    most = max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)  # beyond which Pillow refuses a picture

    def require_size(width: int, height: int) -> None:
        if width * height > most:
            raise _TooLargeError(f"{width} x {height} pixels, more than {most}")

    head = file.read(_HEAD)
    file.seek(0)
    if formats is None and is_dicom(head):
        values = read_dicom(file, rules.page, windowed=rules.range is None, require_size=require_size)
        return picture_of(values, rules)
    if formats is None and is_nifti(head):
        return picture_of(read_nifti(file, rules.page, require_size=require_size), rules)
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        if head.startswith(TIFF_MARKS) and (formats is None or "TIFF" in formats):
            return _tiff(file, rules, require_size)
        raise
    with image:
        for page in sorted({1, rules.page}):  # the way to a page leads through the first
            _go_to_page(image, page)
            if max_pixels is not None:
                for width, height in _sizes(image):
                    require_size(width, height)
        if image.format == "TIFF" and _misread(image, rules):
            return _tiff(file, rules, require_size)
        if image.format == "PNG" and eight_bit_colours(image) and (rules.range or rules.channels):
            require_page(rules.page, 1)  # torchvision reads no others
            file.seek(0)
            return _with_info(picture_of(read_png(file), rules), image)
        try:
            return _decode(image, rules)
        except MissingChannelError as error:  # scanners and microscopes write channels as pages, too
            pages = getattr(image, "n_frames", 1)
            raise ValueError(
                f"{error}; it has {pages} pages, of which --page takes one" if pages > 1 else error
            ) from error


def _tiff(file: BinaryIO, rules: PixelRules, require_size: Callable[[int, int], None]) -> Image.Image:
    file.seek(0)
    values, orientation = read_tiff(file, rules.page, require_size=require_size)
    picture = picture_of(values, rules)
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture  # as Pillow does


def _go_to_page(image: ImageFile.ImageFile, page: int) -> None:
    if page > 1:
        require_page(page, getattr(image, "n_frames", 1))
        image.seek(page - 1)


def _sizes(image: Image.Image) -> list[tuple[int, int]]:
    """Give the size of a picture, and of the tiles that it is stored in."""
    tags: Any = getattr(image, "tag_v2", {})
    width, height = (max(np.atleast_1d(tags.get(tag, 1))) for tag in _TILE)
    return [image.size, (int(width), int(height))]


def _decode(image: ImageFile.ImageFile, rules: PixelRules) -> Image.Image:
    cut = eight_bit_colours(image)
    image.load()
    if cut and rules.checked:
        colours = np.asarray(image)[..., :3].astype(np.int64) * 257
        require_used(colours, *limits_of(np.dtype(np.uint16)), "declared")
    picture = _in_srgb(image) if rules.profile else image
    if (values := _values(picture)) is not None:
        return _with_info(picture_of(values, rules), image)
    if not rules.channels:
        return picture
    if picture.mode in ("1", "P", "PA", "La", "RGBa"):  # as colours: numbers in a palette are none
        picture = picture.convert("L" if picture.mode == "1" else "RGBA" if picture.has_transparency_data else "RGB")
    array = taken(np.asarray(picture).reshape(*picture.size[::-1], -1), rules.channels)
    return _with_info(Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array)), image)


def _with_info(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Give a picture the metadata of the one that it was made of, its orientation among them."""
    picture.info = dict(image.info)
    return picture


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB by a picture's own ICC profile; a picture without one that is for its colours stays as it is.

    Raises:
        ValueError: for a damaged profile.
    """
    content = image.info.get("icc_profile")
    if not content or image.mode in (*_SIXTEEN_BITS, "I", "F"):
        return image
    if (mode := {"LA": "L", "1": "L"}.get(image.mode, image.mode)) not in _SPACES:
        mode = "RGB"
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        if profile.profile.xcolor_space != _SPACES[mode]:
            return image
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError(f"its colour profile cannot be used ({error}): leave out --apply-profile") from error
    assert converted is not None
    return _with_info(converted, image)


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of more than 8 bits in memory, as :func:`load_image` scales those of files by default.

    Raises:
        ValueError: for values whose white is not known.
    """
    values = _values(image)
    return image if values is None else _with_info(picture_of(values, AS_DECLARED), image)


def _values(image: Image.Image) -> Values | None:
    """Give greys of more than 8 bits; ``None`` for other pictures.

    White is 65535 for 16 bits, 4095 for TIFF's 12 bits, and PGM's maxval (Pillow scales it to 65535).
    """
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode in _SIXTEEN_BITS:
        array, bits = np.asarray(image).astype(np.uint16), tags.get(_BITS, (16,))
        white = limits_of(array.dtype, bits[0] if isinstance(bits, tuple) else int(bits))[1]
        return Values(array[..., None], 0, white, "declared", inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # older versions of Pillow read PNG so
        return Values(np.asarray(image).astype(np.uint16)[..., None], 0, 65535, "declared")
    if image.mode not in ("I", "F"):
        return None
    array = np.asarray(image)
    bits = int(np.atleast_1d(tags.get(_BITS, 32))[0])
    if image.mode == "I" and image.format == "TIFF" and np.atleast_1d(tags.get(_FORMAT, 1))[0] != _SIGNED:
        array = array.view(np.uint32)
    return Values(array[..., None], *limits_of(array.dtype, bits), "type")


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


def stored_frame(
    stored: Path | BinaryIO, rules: PixelRules = AS_DECLARED
) -> tuple[tuple[int, int], Image.Transpose | None]:
    """Read width and height of a picture as it is stored, and how it is to be turned, if possible without its pixels.

    Pillow turns a TIFF file itself: that is decoded, and counts as stored upright.

    Raises:
        OSError, ValueError: or whatever else the decoder raises.
    """
    if isinstance(stored, Path):
        require_regular(stored)
    with suppress(UnidentifiedImageError), Image.open(stored) as image:
        if image.format != "TIFF" and rules.page == 1:
            return image.size, turn_of(image)
    rules = replace(rules, checked=False)
    if isinstance(stored, Path):
        picture = load_image(stored, rules)
    else:
        stored.seek(0)
        picture = read_image(stored, rules)
    return picture.size, turn_of(picture)


def exif_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 if it is missing or damaged.

    Pillow turns a TIFF file itself when it loads it, and then forgets the tag.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever broken metadata raises, the picture is there
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _misread(image: Image.Image, rules: PixelRules) -> bool:
    """Tell a TIFF file of which Pillow would give wrong values, or not all that the rules ask for.

    Pillow misreads signed bytes, and uncompressed planes of 16 bits. Of colours of 16 bits it gives the upper 8, and of
    channels beyond the colours none.
    """
    tags: Any = getattr(image, "tag_v2", {})
    signed = image.mode not in ("I", "F") and _SIGNED in np.atleast_1d(tags.get(_FORMAT, 1))
    apart = tags.get(_PLANES) == _APART and tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    if signed or (apart and max(np.atleast_1d(tags.get(_BITS, 1))) > 8):
        return True
    more = int(tags.get(_SAMPLES, 1)) > len(image.getbands())
    return bool((rules.channels and more) or ((rules.range or rules.channels) and eight_bit_colours(image)))
