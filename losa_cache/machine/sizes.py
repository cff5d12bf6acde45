"""Numbers of bytes, as people write and read them. This module imports no library."""

import re

from losa_cache.errors import UserError

_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(size: str | int) -> int:
    """Read a size: ``4GB`` (10^9 each), ``1.5GiB`` (2^30), ``512MB``, or plain bytes.

    Raises:
        UserError: if it is none, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", str(size).strip(), re.IGNORECASE)
    number = 0
    if match is not None:
        value, prefix, binary = match.groups()
        number = int(float(value) * (1024 if binary else 1000) ** _PREFIXES[prefix.lower()])
    if number < 1:
        raise UserError(f"{str(size)!r} is no size: write 4GB, 512MB, 1.5GiB or a number of bytes.")
    return number


def readable_bytes(count: float) -> str:
    """Write bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
