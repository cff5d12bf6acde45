"""Means and deviations that pixels are normalised with, by name. This module imports no library.

Numbers are those of timm (``timm/data/constants.py``), in units of pixels scaled to 0 ... 1.
"""

from losa_cache.errors import UserError, nearest

TIMM = "timm"
"""The backbone's own, as timm or its checkpoint says."""
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of red, green and blue."""


def require_normalisation(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        UserError: naming the known ones.
    """
    if name not in (known := (TIMM, *NORMALISATIONS)):
        raise UserError(
            f"unknown normalisation {name!r}: choose one of {', '.join(known)}{nearest(name, list(known))}."
        )
