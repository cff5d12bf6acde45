"""How values that are not 8-bit RGB become pixels. This module imports no library."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from losa_cache.errors import UserError

DTYPE, MIN_MAX, PERCENTILE = "dtype", "min-max", "percentile"
OUTER = (1.0, 99.0)
"""The percentiles that ``percentile`` means."""
WHOLE = (0.0, 100.0)
MOST_CHANNELS = 65535  # that TIFF can count


class PixelFields(TypedDict, total=False):
    """``fields.pixels`` of a cache: the rules, as far as they differ from the default."""

    range: str
    channels: list[int]
    page: int
    profile: bool


@dataclass(frozen=True)
class ValueRange:
    """The values that become black and white; those between are scaled linearly, those beyond are clipped.

    Attributes:
        low, high: of them; with ``percent`` the percentiles of each picture's own values.
    """

    low: float
    high: float
    percent: bool = False

    def __str__(self) -> str:
        if self.percent and (self.low, self.high) == WHOLE:
            return MIN_MAX
        sign = "%" if self.percent else ""
        return f"{_short(self.low)}{sign}..{_short(self.high)}{sign}"


@dataclass(frozen=True)
class PixelRules:
    """The rules by which a picture is brought to 8 bits and to the channels of the backbone.

    Attributes:
        range: of pictures of more than 8 bits a channel; ``None``: what the file declares, or else its data type.
        checked: refuse pictures of which the declared range would leave next to nothing. It decides whether a picture
            is read, and not how: it is no part of :meth:`fields`.
        channels: numbers of the channels that are taken, from 1, one or three of them; none: those that the file shows.
        page: which picture of a file that holds several, or which frame or slice, from 1.
        profile: whether colours are converted to sRGB by the ICC profile of their file.
    """

    range: ValueRange | None = None
    checked: bool = False
    channels: tuple[int, ...] = ()
    page: int = 1
    profile: bool = False

    def fields(self) -> PixelFields:
        """Give what decides the pixels, as far as it differs from the default: ``fields.pixels`` of a cache."""
        fields: PixelFields = {} if self.range is None else {"range": str(self.range)}
        if self.channels:
            fields["channels"] = list(self.channels)
        if self.page > 1:
            fields["page"] = self.page
        if self.profile:
            fields["profile"] = True
        return fields

    def options(self) -> dict[str, Any]:
        """Give the options (``losa_cache.inputs_config.ImageConfig``) that mean these rules."""
        return {
            "range": None if self.checked else DTYPE if self.range is None else str(self.range),
            "channels": ",".join(map(str, self.channels)) or None,
            "page": self.page,
            "apply_profile": self.profile,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "PixelRules":
        """Take the ``fields`` of a cache: what it was made of is not judged again.

        Raises:
            UserError: if its ``pixels`` cannot be.
        """
        known: PixelFields = fields.get("pixels", {})
        channels = ",".join(map(str, known.get("channels", ()))) or None
        return parse_rules(known.get("range", DTYPE), channels, known.get("page", 1), known.get("profile", False))


AS_DECLARED = PixelRules()


def parse_rules(text: str | None, channels: str | None, page: int, profile: bool) -> PixelRules:
    """Read the options of pixels.

    Args:
        text: ``dtype``, ``min-max``, ``percentile``, ``LO%..HI%`` or ``LO..HI``; ``None``: ``dtype``, checked.
        channels: one or three numbers from 1, with commas.
        page: from 1.
        profile: whether to convert by ICC profiles.

    Raises:
        UserError: for one that cannot be.
    """
    if page < 1:
        raise UserError(f"page is {page}: pages are counted from 1.")
    return PixelRules(parse_range(text), text is None, parse_channels(channels), page, profile)


def parse_range(text: str | None) -> ValueRange | None:
    """Read ``--range``; ``None`` is what files declare.

    Raises:
        UserError: for anything else.
    """
    if text is None or text == DTYPE:
        return None
    if text in (MIN_MAX, PERCENTILE):
        return ValueRange(*(WHOLE if text == MIN_MAX else OUTER), percent=True)
    parts = text.split("..")
    percent = all(part.endswith("%") for part in parts)
    try:
        low, high = (float(part.removesuffix("%") if percent else part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"range is {text!r}: write {DTYPE}, {MIN_MAX}, {PERCENTILE}, two percentiles such as 0.5%..99.5%, or the "
            "values that become black and white, such as 0..4095."
        )
    if percent and not WHOLE[0] <= low < high <= WHOLE[1]:
        raise UserError(f"range is {text!r}: percentiles lie between 0 and 100.")
    return ValueRange(low, high, percent)


def parse_channels(text: str | None) -> tuple[int, ...]:
    """Read ``--channels``.

    Raises:
        UserError: for anything but one or three numbers from 1.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    numbers = tuple(int(part) if part.isdecimal() and len(part) <= len(str(MOST_CHANNELS)) else 0 for part in parts)
    if len(numbers) not in (1, 3) or not all(0 < number <= MOST_CHANNELS for number in numbers):
        raise UserError(f"channels is {text!r}: name one channel, or three as red, green and blue, such as 4,3,2.")
    return numbers


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
