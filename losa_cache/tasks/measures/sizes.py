"""The size of a dense task's maps, as its constants hold it. Nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

SIZE = "size"
"""Name of the constant: height and width in pixels."""
LARGEST = 2**16


def size_of(constants: Mapping[str, Any]) -> list[int]:
    """Read the size out of an adapter's constants.

    Raises:
        ValueError: if it is none.
    """
    size = constants.get(SIZE)
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= LARGEST for n in size)):
        raise ValueError("the constants have no height and width of a map")
    return size
