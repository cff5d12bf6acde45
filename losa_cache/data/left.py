"""What a listing leaves out of a data set, and what it keeps and remarks on: counts and first names."""

import logging
from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

HIDDEN = "hidden or system files and folders"
OTHERS = "files of other kinds"
BESIDE = "images or videos beside the class folders"
BESIDE_SPLITS = "files and folders beside the split folders"
LOOPS = "links back to a folder that holds them"
TWICE = "files and folders that a class meets twice, by links"
EMPTY = "folders without an image or video in any split, which are no classes"

EMPTY_HERE = "class folders that are empty in this split and not in others"
ALIKE = "files whose names differ only in case or extension"
KEPT = (EMPTY_HERE, ALIKE)
"""Kinds that are not left out."""

SHOWN = 5  # names of a kind


@dataclass
class Left:
    """How many of each kind, and the names that sort first.

    Attributes:
        base: the folder that names are relative to.
    """

    base: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        names = self.names.setdefault(kind, [])
        if len(names) < SHOWN or name < names[-1]:
            insort(names, name)
            del names[SHOWN:]

    def take(self, other: "Left") -> None:
        """Add what another one counts."""
        self.counts += other.counts
        for kind, names in other.names.items():
            self.names[kind] = sorted([*self.names.get(kind, ()), *names])[:SHOWN]

    def say(self) -> None:
        """Log a line for each kind."""
        for kind, count in self.counts.items():
            names = ", ".join(map(repr, self.names[kind])) + (", ..." if count > SHOWN else "")
            log.info("%r: %s %s: %d (%s).", self.base, "kept" if kind in KEPT else "left out", kind, count, names)

    def listed(self, *, kept: bool) -> list[dict[str, Any]]:
        """Give what was left out, or what was kept: what it is, how many, and the first names."""
        kinds = [kind for kind in self.counts if (kind in KEPT) is kept]
        return [{"what": kind, "count": self.counts[kind], "names": self.names[kind]} for kind in kinds]
