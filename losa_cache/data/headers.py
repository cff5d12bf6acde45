"""What the files of images say of themselves: size, mode and format, or why they cannot be read."""

import io
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from losa_cache.data.medical import format_of
from losa_cache.data.picture import require_regular
from losa_cache.data.samples import Samples
from losa_cache.data.video import read_stream
from losa_cache.extras import MissingExtraError

IN_MEMORY = "in memory"
"""The format of images that no file holds."""
_PART = 512


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are.

    Attributes:
        width, height: in pixels, as stored: not turned by an EXIF orientation.
        mode: Pillow's name of the channels and their bits: ``RGB``, ``L``, ``I;16``, ...; of a video FFmpeg's.
        format: Pillow's name of the file format; ``DICOM`` or ``NIfTI``; of other images the suffix; of a
            video FFmpeg's name of the container.
    """

    width: int
    height: int
    mode: str
    format: str


def read_header(samples: Samples, index: int, *, decode: bool) -> Header | str:
    """Look at an image or video.

    An image that Pillow does not know by its header, such as a scan of another format, is decoded.

    Args:
        samples: that it belongs to.
        index: its place among them.
        decode: decode the image in full, as an extraction does.

    Returns:
        its header, or why it cannot be read.

    Raises:
        MissingExtraError: if a library is missing that the image needs.
    """
    try:
        header = _stored(samples, index)
        if header is None or decode:
            image = samples.load(index)
            file = None if samples.file is None else samples.file(index)
            kind = IN_MEMORY if file is None else format_of(str(file)) or file.suffix.lstrip(".").upper()
            header = header or Header(image.width, image.height, image.mode, kind)
    except MissingExtraError:  # that is no fault of the image
        raise
    except Exception as error:  # decoders raise anything; the image is named
        return f"{type(error).__name__}: {error}"
    return header


def _stored(samples: Samples, index: int) -> Header | None:
    """Read the header of a file, or of stored bytes; ``None``: Pillow does not know them."""
    source: Path | io.BytesIO
    if samples.file is not None:
        require_regular(source := samples.file(index))
        if samples.clip is not None:
            return Header(*read_stream(source))
    elif samples.encoded is not None:
        source = io.BytesIO(samples.encoded(index))
    else:
        return None
    try:
        with Image.open(source) as image:
            return Header(*image.size, image.mode, image.format or "")
    except UnidentifiedImageError:
        return None


@dataclass
class HeaderCounts:
    """Headers, summed up.

    Attributes:
        widths, heights: in pixels.
        modes, formats: how many images have them.
        unreadable: ids and reasons.
    """

    widths: "array[int]" = field(default_factory=lambda: array("l"))
    heights: "array[int]" = field(default_factory=lambda: array("l"))
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def add(self, names: Iterable[str], headers: Iterable[Header | str]) -> None:
        """Count these images."""
        for name, header in zip(names, headers, strict=True):
            if isinstance(header, str):
                self.unreadable.append({"id": name, "reason": header})
                continue
            self.widths.append(header.width)
            self.heights.append(header.height)
            self.modes[header.mode] += 1
            self.formats[header.format] += 1

    def summary(self) -> dict[str, Any]:
        """Give smallest, median and largest width and height, and the counts."""
        return {
            "width": _spread(self.widths),
            "height": _spread(self.heights),
            "modes": dict(self.modes.most_common()),
            "formats": dict(self.formats.most_common()),
            "unreadable": self.unreadable,
        }


def _spread(values: "array[int]") -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def in_parts(count: int) -> Iterator[range]:
    """Cut ``range(count)`` into ranges that a thread works on before it takes another."""
    return (range(start, min(start + _PART, count)) for start in range(0, count, _PART))
