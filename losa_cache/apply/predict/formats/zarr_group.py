"""Zarr v3: a group with an array ``ids`` and one for each adapter.

It is ``features/NAME``, float32 ``(inputs, features)``; or ``maps/NAME``, ``(inputs, rows, columns)``: float32, or
uint8 where pixels are numbers of classes, whose names are the attribute ``classes``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from losa_cache.apply.predict.formats.base import ROWS, FolderFormat
from losa_cache.apply.predict.table import MAPS, Answer, Rows, Table, regrouped

CHUNK, CHUNK_OF_MAPS = 1024, 16

NOT_HERE = "it holds feature vectors and maps: add --embed, or choose .csv, .jsonl or .parquet"


class ZarrGroup(FolderFormat):
    """Chunks of 1024 vectors, or of 16 maps; ids are strings of any length."""

    suffix = ".zarr"
    features = maps = True

    def refuse(self, table: Table) -> str:
        """Hold vectors, or maps."""
        if table.embeds or all(answer.kind == MAPS for answer in table.answers):
            return ""
        return "maps and other predictions do not go into one file" if table.maps else NOT_HERE

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; the arrays must be those of the adapters."""
        import zarr

        try:
            group = zarr.open_group(path, mode="r", zarr_format=3)
            ids: Any = group["ids"]
            arrays: dict[str, Any] = dict(group[_content(table)].arrays())  # type: ignore[union-attr]
        except (KeyError, FileNotFoundError, AttributeError) as error:
            raise ValueError(f"it is no group of {_content(table)} ({error})") from error
        wanted = {answer.name: (ids.shape[0], *_shape(answer)) for answer in table.answers}
        if (found := {name: own.shape for name, own in arrays.items()}) != wanted:
            raise ValueError(f"it holds the arrays {found}")
        size = CHUNK_OF_MAPS if table.maps else ROWS
        for at in range(0, ids.shape[0], size):
            names = [str(name) for name in ids[at : at + size]]
            parts = (np.asarray(arrays[answer.name][at : at + size], dtype=np.float32) for answer in table.answers)
            yield Rows(names, tuple(part.reshape(len(names), -1) for part in parts))

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write a new group beside the old one, and put it in its place."""
        import zarr

        with self.replacing(path) as new:
            group = zarr.open_group(new, mode="w", zarr_format=3)
            content = group.create_group(_content(table))
            together = CHUNK_OF_MAPS if table.maps else CHUNK
            size = min(together, max(1, count))
            ids = group.create_array("ids", shape=(count,), chunks=(size,), dtype=str)
            arrays = []
            for answer in table.answers:
                shape, numbers = _shape(answer), answer.kind == MAPS and answer.classes
                dtype = "uint8" if numbers else "float32"
                array = content.create_array(answer.name, shape=(count, *shape), chunks=(size, *shape), dtype=dtype)
                array.attrs.update({"classes": list(answer.classes)} if numbers else {})
                arrays.append(array)
            at = 0
            for part in regrouped(rows, together):
                ids[at : at + len(part)] = np.array(part.ids, dtype=object)
                for array, values in zip(arrays, part.values, strict=True):
                    array[at : at + len(part)] = values.reshape(len(part), *array.shape[1:])
                at += len(part)


def _content(table: Table) -> str:
    """Name the group of the arrays."""
    return "maps" if table.maps else "features"


def _shape(answer: Answer) -> tuple[int, ...]:
    """Give the shape of an answer to one input."""
    return answer.shape if answer.kind == MAPS else (answer.width,)


FORMAT = ZarrGroup()
