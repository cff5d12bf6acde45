"""NumPy: the feature vectors of one adapter, float32 ``(inputs, features)``; their ids in ``.ids.json`` beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from losa_cache.apply.predict.formats.base import ROWS, Format
from losa_cache.apply.predict.table import Rows, Table
from losa_cache.files import replacing
from losa_cache.outside import UnreadableError, read_json

MOST_BYTES = 2**34  # of the list of ids


class Npy(Format):
    """An array in C order, and the ids of its rows."""

    suffix = ".npy"
    features = True

    def refuse(self, table: Table) -> str:
        """One array holds the vectors of one adapter."""
        return super().refuse(table) or (
            "" if len(table.answers) == 1 else "a .npy file holds the features of one adapter: choose .zarr or .parquet"
        )

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; there must be an id for each, and as many features as the adapter has."""
        try:
            ids = read_json(ids_of(path), list[str], at_most=MOST_BYTES)
        except UnreadableError as error:
            raise ValueError(f"it has no ids beside it ({ids_of(path).name}: {error})") from error
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        (answer,) = table.answers
        if values.dtype != np.float32 or values.shape[1:] != (answer.width,):
            raise ValueError(f"it holds {values.dtype} {values.shape}, and not float32 of {answer.width} features")
        if len(ids) < len(values):
            raise ValueError(f"it holds {len(values)} rows, and {ids_of(path).name} {len(ids)} ids")
        for at in range(0, len(values), ROWS):
            part = np.array(values[at : at + ROWS])
            yield Rows(ids[at : at + len(part)], (part,))

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write the ids, and then the array: an array never has more rows than ids."""
        (answer,) = table.answers
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, answer.width)}
        with replacing(path) as file, replacing(ids_of(path)) as names:
            np.lib.format.write_array_header_1_0(file, header)
            between = b"["
            for part in rows:
                file.write(np.ascontiguousarray(part.values[0], dtype="<f4").tobytes())
                for name in part.ids:
                    names.write(between + json.dumps(name).encode("ascii"))
                    between = b",\n"
            names.write(b"]\n" if between != b"[" else b"[]\n")


def ids_of(path: Path) -> Path:
    """Name the file of the ids."""
    return path.with_suffix(".ids.json")


FORMAT = Npy()
