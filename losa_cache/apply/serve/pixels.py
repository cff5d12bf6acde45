"""From the bytes of a request to pixels: decoded as at extraction, within bounds, by decoders that are meant for it."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from losa_cache.apply.serve.refused import RefusedError
from losa_cache.data.picture import read_image, upright
from losa_cache.data.pixel_rules import PixelRules
from losa_cache.data.transforms import InputSpec
from losa_cache.text import shown

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""Decoders that bytes from outside may reach. Pillow has others, of which one starts a program (EPS)."""
KNOWN = "JPEG, PNG, WebP, TIFF, BMP, PPM or GIF"


class Pixels:
    """Turn the bytes of images into pixels; any thread may call it.

    Args:
        spec: of the preprocessing.
        rules: how files that are not 8-bit RGB become pixels, as in the caches of the adapters.
        turned: turn pictures as their EXIF orientation says, as the caches of the adapters have them.
        max_pixels: larger pictures are refused before they are decoded.
    """

    def __init__(self, spec: InputSpec, rules: PixelRules, *, turned: bool, max_pixels: int) -> None:
        self._transform, self._rules, self._turned, self._most = spec.transform(), rules, turned, max_pixels

    def __call__(self, raw: bytes) -> NDArray[np.uint8]:
        """Decode, and resize and crop.

        Returns:
            uint8 ``(channels, height, width)``.

        Raises:
            RefusedError: if it is no image, a damaged one, or too large.
        """
        if not raw:
            raise RefusedError(
                400, "the request has no image: send the bytes of one as its body, or as a file of a form."
            )
        try:
            image = read_image(BytesIO(raw), self._rules, max_pixels=self._most, formats=FORMATS)
            pixels: NDArray[np.uint8] = self._transform(upright(image) if self._turned else image).numpy()
        except UnidentifiedImageError as error:
            raise RefusedError(415, f"the {len(raw)} bytes that were sent are no image: send a {KNOWN}.") from error
        except (OverflowError, Image.DecompressionBombError) as error:
            raise RefusedError(413, f"the image is too large ({shown(str(error))}): send a smaller one.") from error
        except Exception as error:  # decoders raise anything
            reason = shown(f"{type(error).__name__}: {error}"[:200])
            raise RefusedError(400, f"the image does not decode ({reason}): send it again, or another one.") from error
        return pixels
