"""Which files are DICOM or NIfTI, by their names and, where DICOM files have no suffix, by what they hold."""

import re
from collections.abc import Iterable
from importlib.util import find_spec

from losa_cache.data import dicom, nifti
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, open_file

SUFFIXES = dicom.SUFFIXES + nifti.SUFFIXES
_NAMELESS = re.compile(r"[^.]+|[\d.]+|.*\.\d+")  # such as IM000001, 1.2.840.113619.2 and CT.1.2.3


def is_nameless_dicom(path: str) -> bool:
    """Tell a DICOM file whose name has no suffix, or digits in its place, as discs and archives of hospitals have them.

    Only such files are opened.
    """
    if not _NAMELESS.fullmatch(path.rpartition("/")[2]):
        return False
    try:
        with open_file(path) as file:
            return dicom.is_dicom(file.read(dicom.MARK_AT + len(dicom.MARK)))
    except (UnreadableError, OSError):
        return False


def format_of(path: str) -> str:
    """Give the name of the format of a DICOM or NIfTI file; empty: it is neither."""
    if path.lower().endswith(nifti.SUFFIXES):
        return "NIfTI"
    return "DICOM" if path.lower().endswith(dicom.SUFFIXES) or is_nameless_dicom(path) else ""


def require_readers(name: str, paths: Iterable[str]) -> None:
    """Refuse files that no installed library reads.

    Args:
        name: of the data set.
        paths: of DICOM and NIfTI files.

    Raises:
        UserError: naming the extra.
    """
    kinds = {path.lower().endswith(nifti.SUFFIXES) for path in paths}
    for is_nifti, kind, package in ((False, "DICOM", "pydicom"), (True, "NIfTI", "nibabel")):
        if is_nifti in kinds and find_spec(package) is None:
            raise UserError(
                f"data set {name!r} holds {kind} files, which need {package}: pip install 'losa-cache[medical]'."
            )
