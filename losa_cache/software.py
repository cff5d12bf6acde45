"""Versions of the software that decides the numbers of a cache: a cache stores them beside its identity."""

from functools import cache
from importlib.metadata import version

PACKAGES = ("losa-cache", "torch", "timm", "zarr")


@cache  # parsing a package's metadata takes as long as a batch of a small trunk
def _version(package: str) -> str:
    return version(package)


def software() -> dict[str, str]:
    """Give the version of each package."""
    return {name: _version(name) for name in PACKAGES}
