"""Zarr v3: a group with an array ``ids`` and, for each adapter, ``features/NAME``, float32 ``(inputs, features)``."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from losa_cache.apply.predict.formats.base import ROWS, Format
from losa_cache.apply.predict.table import Rows, Table, regrouped
from losa_cache.files import clear, publish, sync_folder, sync_tree

CHUNK = 1024


class ZarrGroup(Format):
    """Chunks of 1024 rows; ids are strings of any length."""

    suffix = ".zarr"
    features = True

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; the arrays must be those of the adapters."""
        import zarr

        try:
            group = zarr.open_group(path, mode="r", zarr_format=3)
            ids: Any = group["ids"]
            arrays: dict[str, Any] = dict(group["features"].arrays())  # type: ignore[union-attr]
        except (KeyError, FileNotFoundError, AttributeError) as error:
            raise ValueError(f"it is no group of features ({error})") from error
        wanted = {answer.name: (ids.shape[0], answer.width) for answer in table.answers}
        if (found := {name: own.shape for name, own in arrays.items()}) != wanted:
            raise ValueError(f"it holds the arrays {found}")
        for at in range(0, ids.shape[0], ROWS):
            names = [str(name) for name in ids[at : at + ROWS]]
            parts = (np.asarray(arrays[answer.name][at : at + ROWS], dtype=np.float32) for answer in table.answers)
            yield Rows(names, tuple(parts))

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write a new group beside the old one, and put it in its place."""
        import zarr

        new, old = _beside(path)
        clear(new)
        group = zarr.open_group(new, mode="w", zarr_format=3)
        features = group.create_group("features")
        size = min(CHUNK, max(1, count))
        ids = group.create_array("ids", shape=(count,), chunks=(size,), dtype=str)
        arrays = [
            features.create_array(
                answer.name, shape=(count, answer.width), chunks=(size, answer.width), dtype="float32"
            )
            for answer in table.answers
        ]
        at = 0
        for part in regrouped(rows, CHUNK):
            ids[at : at + len(part)] = np.array(part.ids, dtype=object)
            for array, values in zip(arrays, part.values, strict=True):
                array[at : at + len(part)] = values
            at += len(part)
        sync_tree(new)
        if path.exists():
            publish(path, old)
        publish(new, path)
        clear(old)

    def recover(self, path: Path) -> None:
        """Put the old group back where a kill came between its move and that of the new one."""
        _, old = _beside(path)
        if old.exists():
            if path.exists():
                clear(old)
            else:
                os.replace(old, path)
                sync_folder(path.parent)


def _beside(path: Path) -> tuple[Path, Path]:
    """Name the places of a group that is being written, and of the one that it replaces."""
    return path.with_name(f".{path.name}.losa-cache-new"), path.with_name(f".{path.name}.losa-cache-old")


FORMAT = ZarrGroup()
