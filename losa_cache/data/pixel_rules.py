"""How values that are not 8-bit RGB become pixels. This module imports no library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelRules:
    """The rules by which a picture is brought to 8 bits and to the channels of the backbone."""


AS_DECLARED = PixelRules()
