"""Slices of NIfTI files, by nibabel."""

import gzip
import logging
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from losa_cache.data.values import Values, limits_of, require_page
from losa_cache.extras import extra
from losa_cache.outside import most_inflated

SUFFIXES = (".nii", ".nii.gz")
GZIP = b"\x1f\x8b"
ONE, TWO = (344, b"n+1\0"), (4, b"n+2\0")
"""Where the two versions of a header have which mark."""


def is_nifti(head: bytes) -> bool:
    """Tell a NIfTI file, compressed or not, by its first kilobyte."""
    head = _inflated(head)
    return any(head[at : at + len(mark)] == mark for at, mark in (ONE, TWO))


def read_nifti(file: BinaryIO, page: int, *, require_size: Callable[[int, int], None]) -> Values:
    """Read one slice: the first axis goes to the right, the second upwards, and the last is that of the slices.

    Values are scaled as the header says (``scl_slope``, ``scl_inter``). Black and white are ``cal_min`` and
    ``cal_max``, or else the range of the data type.

    Args:
        file: opened.
        page: number of the slice, from 1.
        require_size: refuses a width and height that are too large.

    Raises:
        UserError: if nibabel is not installed.
        ValueError: for a slice that is not there, fewer than two axes or more than three longer than 1, or values that
            are no numbers.
    """
    with extra("nibabel", "NIfTI files need nibabel", "medical"):
        from nibabel import Nifti1Image, Nifti2Image
        from nibabel.arrayproxy import ArrayProxy

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it says there is raised, too

    head = file.read(1024)
    file.seek(0)
    kind = Nifti1Image if _inflated(head)[ONE[0] : ONE[0] + 4] == ONE[1] else Nifti2Image
    stream: Any = _Gzip(file) if head.startswith(GZIP) else file
    image = kind.from_stream(stream)
    if len(image.shape) < 2 or any(length != 1 for length in image.shape[3:]):
        raise ValueError(f"its shape is {image.shape}: slices need two axes or three")
    width, height, *slices = image.shape
    require_page(page, slices[0] if slices else 1, "slice")
    require_size(width, height)
    header = image.header
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ValueError(f"its values are of the type {dtype}, which is no number")
    stored = image.dataobj
    assert isinstance(stored, ArrayProxy)
    place = (slice(None), slice(None), *([page - 1] if slices else []), *(0 for _ in slices[1:]))
    values = np.asarray(stored[place])
    black, white = sorted(end * float(stored.slope) + float(stored.inter) for end in limits_of(dtype))
    shown = float(header["cal_min"]), float(header["cal_max"])
    array = values.reshape(width, height).T[::-1, :, None]
    windowed = -np.inf < shown[0] < shown[1] < np.inf
    return Values(array, *shown, "window") if windowed else Values(array, black, white, "type")


class _Gzip(gzip.GzipFile):
    """A compressed file of which no part is read that inflates to more than any picture: a header may name one."""

    def __init__(self, file: BinaryIO) -> None:
        self._stored = file.seek(0, os.SEEK_END)
        file.seek(0)
        super().__init__(fileobj=file)

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes.

        Raises:
            ValueError: for more than the file can hold.
        """
        if size is not None and size > (most := most_inflated(self._stored)):
            raise ValueError(f"it says that it has {size} bytes at one place, more than {most}")
        return super().read(size)


def _inflated(head: bytes) -> bytes:
    if not head.startswith(GZIP):
        return head
    try:
        return zlib.decompressobj(31).decompress(head, 1024)
    except zlib.error:
        return b""
