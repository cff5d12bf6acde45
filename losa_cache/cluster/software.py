"""What code a process runs: workers get work only if it is that of the command which gives it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import losa_cache
from losa_cache.cache.identity import differences

SIDES = ("on this worker", "on the others")
DECIDES = ("torch", "timm", "numpy", "pillow", "zarr")
"""Packages whose version decides bits of a result."""


@dataclass(frozen=True)
class Software:
    """The code of a process.

    Attributes:
        code: sha256 over the modules of losa-cache, by their names.
        versions: by package. What follows a ``+``, as in ``2.9.0+cpu``, is left out: a machine that only gives work
            may have torch without CUDA.
    """

    code: str
    versions: Mapping[str, str]

    @classmethod
    @cache
    def here(cls) -> "Software":
        """Give that of this process."""
        folder = Path(losa_cache.__file__).parent
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        names = ("losa-cache", *DECIDES)
        return cls(digest.hexdigest(), {name: version(name).partition("+")[0] for name in names})

    def difference(self, theirs: "Software") -> str | None:
        """Say in what another process differs; ``None`` if it runs the same code."""
        for name, ours in self.versions.items():
            if theirs.versions[name] != ours:
                return f"it has {name} {theirs.versions[name]}, not {ours}: install that version there"
        if theirs.code != self.code:
            return (
                f"the modules of its losa-cache (sha256 {theirs.code[:12]}) are not those of this command "
                f"({self.code[:12]}), although both say that they are version {self.versions['losa-cache']}: install "
                "the same there"
            )
        return None


def other_numbers(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say why a worker is refused whose fields differ, of which results depend."""
    return f"it would compute other numbers: {'; '.join(differences(theirs, ours, SIDES))}."
