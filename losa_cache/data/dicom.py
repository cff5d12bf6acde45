"""DICOM files, by pydicom: values with their own window, photometric interpretation and frames."""

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from losa_cache.data.values import Trust, Values, limits_of, require_page
from losa_cache.extras import extra
from losa_cache.outside import most_inflated

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
MARK, MARK_AT = b"DICM", 128
PALETTE, INVERTED = "PALETTE COLOR", "MONOCHROME1"
_META_AT, _META_GROUP, _SYNTAX = 132, 0x0002, 0x00020010
_MEANINGS = (
    *("WindowCenter", "WindowWidth", "VOILUTSequence", "VOILUTFunction"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
)
"""What says how values are meant and shown."""


def is_dicom(head: bytes) -> bool:
    """Tell a DICOM file by its first 132 bytes (PS3.10, section 7.1)."""
    return head[MARK_AT : MARK_AT + len(MARK)] == MARK


def read_dicom(file: BinaryIO, page: int, *, windowed: bool, require_size: Callable[[int, int], None]) -> Values:
    """Read one frame of a DICOM file.

    Greys are those after the modality transformation (Hounsfield units of a CT). Black and white are the ends of the
    file's first window, or else of the bits that it says are stored. Colours are RGB, also those of a palette.

    Args:
        file: opened.
        page: number of the frame, from 1.
        windowed: whether to apply the window or look-up table for display (PS3.3, section C.11.2).
        require_size: refuses a width and height that are too large.

    Raises:
        UserError: if pydicom is not installed.
        ValueError: for a file without pixels, a frame that is not there, a compression that no installed decoder
            knows, or a deflated file that inflates to more than any picture.
    """
    with extra("pydicom", "DICOM files need pydicom", "medical"):
        from pydicom import dcmread
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
        from pydicom.pixels.utils import pixel_array

    _require_inflatable(file)
    data = dcmread(file)
    if "Rows" not in data or "Columns" not in data:
        raise ValueError("it is a DICOM file without an image")
    require_size(int(data.Columns), int(data.Rows))
    require_page(page, int(data.get("NumberOfFrames") or 1), "frame")
    try:
        stored: NDArray[Any] = pixel_array(data, index=page - 1)
    except (RuntimeError, NotImplementedError) as error:
        syntax = data.file_meta.TransferSyntaxUID.name
        raise ValueError(
            f"no decoder of its pixels ({syntax}) is installed: pip install pylibjpeg pylibjpeg-libjpeg "
            "pylibjpeg-openjpeg"
        ) from error
    kind = data.PhotometricInterpretation
    if kind == PALETTE:
        colours = apply_color_lut(stored, data)
        return Values(colours, *limits_of(colours.dtype), "window", (1, 2, 3))
    limits = limits_of(stored.dtype, int(data.get("BitsStored") or 0) or None)
    if stored.ndim == 3:
        return Values(stored, *limits, "declared", (1, 2, 3))
    _lift_groups(data, page - 1)
    _drop_empty(data)
    greys = apply_modality_lut(np.append(stored, np.array(limits, stored.dtype)), data)
    black, white = sorted((float(greys[-2]), float(greys[-1])))
    trust: Trust = "type" if stored.dtype.kind == "f" else "declared"
    values = Values(greys[:-2].reshape(*stored.shape, 1), black, white, trust, inverted=kind == INVERTED)
    return _windowed(values, data) if windowed else values


def _windowed(values: Values, data: "Dataset") -> Values:
    """Apply what a file says of its display; without that the values stay."""
    from pydicom.pixels.processing import apply_voi_lut

    if "VOILUTSequence" in data:
        whole = np.rint(values.array).astype(np.int32)
        shown, white = apply_voi_lut(whole, data), 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return Values(shown, 0.0, white, "window", inverted=values.inverted)
    if "WindowCenter" not in data or "WindowWidth" not in data:
        return values
    beyond = [-1e9, 1e9]  # far on both sides of a window: they become its black and its white
    shown = apply_voi_lut(np.append(values.array, beyond).astype(np.float64), data)
    ends = float(shown[-2]), float(shown[-1])
    return Values(shown[:-2].reshape(values.array.shape), *ends, "window", inverted=values.inverted)


def _require_inflatable(file: BinaryIO) -> None:
    """Refuse a deflated file that inflates to too much: pydicom inflates it as a whole.

    Raises:
        ValueError: saying how much is allowed.
    """
    from pydicom.filereader import data_element_generator
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file.seek(_META_AT)
    meta = data_element_generator(file, False, True, stop_when=lambda tag, *_: tag >> 16 != _META_GROUP)
    values = {int(element.tag): element.value for element in meta}
    if bytes(values.get(_SYNTAX) or b"").rstrip(b"\0").decode("ascii", "replace") == DeflatedExplicitVRLittleEndian:
        deflated = file.read()
        most = most_inflated(len(deflated))
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, most + 1)) > most:
            raise ValueError(f"its {len(deflated)} bytes inflate to more than {most}")
    file.seek(0)


def _drop_empty(data: "Dataset") -> None:
    """Remove elements without a value, which say nothing (PS3.5, section 7.4.2), and complete a rescaling.

    Half of a rescaling is one of slope 1, or of intercept 0.
    """
    for name in _MEANINGS:
        if name in data and (data[name].is_empty or data[name].value == []):
            delattr(data, name)
    if ("RescaleSlope" in data) != ("RescaleIntercept" in data):
        data.RescaleSlope, data.RescaleIntercept = data.get("RescaleSlope", 1), data.get("RescaleIntercept", 0)


def _lift_groups(data: "Dataset", frame: int) -> None:
    """Put what an enhanced multi-frame file says of a frame where files of one frame say it (PS3.3, C.7.6.16)."""
    for sequence, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        groups = data.get(sequence)
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence") if groups else ():
            for item in groups[place].get(name) or ():
                data.update(item)
