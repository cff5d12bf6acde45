"""The contract of an output format: one module a format in this package, found by the suffix of the file's name."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from losa_cache.apply.predict.table import Rows, Table
from losa_cache.files import clear, publish, sync_folder, sync_tree

ROWS = 8192
"""Rows that are read, or written, together."""


class Format(ABC):
    """How a table lies in a file, or a folder.

    What it writes depends on the rows alone, and not on how they are grouped: an output that was interrupted, or that
    was added to, is the same as one that was written at once.

    Attributes:
        suffix: of its files.
        predictions, maps, features: which tables it holds.
    """

    suffix: str
    predictions: bool = False
    maps: bool = False
    features: bool = False

    def require(self) -> None:  # noqa: B027
        """Refuse where a package that it needs is missing.

        Raises:
            UserError: naming it.
        """

    def refuse(self, table: Table) -> str:
        """Say why it cannot hold this table, as a sentence without its end; empty where it can."""
        if table.maps and not self.maps:
            return "maps are written to .zarr, and masks to a folder of PNG files, whose name ends in a slash, too"
        return ""

    @abstractmethod
    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows of an output back, in their order.

        Raises:
            ValueError: where it holds another table, or none; says why.
            OSError: where it cannot be read.
        """

    @abstractmethod
    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write an output, durably, in place of the one that is there: whole, or not at all.

        Args:
            path: of the output. ``rows`` may still be reading it.
            table: what it holds.
            rows: all of them.
            count: how many.

        Raises:
            OSError: where it cannot be written.
        """

    def recover(self, path: Path) -> None:  # noqa: B027
        """Bring back what an interrupted :meth:`write` has moved away; by default it moves nothing."""


class FolderFormat(Format):
    """A table in a folder: a new one is written beside the old one, and put in its place."""

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Give the place of a new folder, which is not there yet, and put it in place when the context ends.

        Raises:
            OSError: if that cannot be.
        """
        new, old = _beside(path)
        clear(new)
        yield new
        sync_tree(new)
        if path.exists():
            publish(path, old)
        publish(new, path)
        clear(old)

    def recover(self, path: Path) -> None:
        """Put the old folder back where a kill came between its move and that of the new one."""
        _, old = _beside(path)
        if old.exists():
            if path.exists():
                clear(old)
            else:
                os.replace(old, path)
                sync_folder(path.parent)


def _beside(path: Path) -> tuple[Path, Path]:
    """Name the places of a folder that is being written, and of the one that it replaces."""
    return path.with_name(f".{path.name}.losa-cache-new"), path.with_name(f".{path.name}.losa-cache-old")
