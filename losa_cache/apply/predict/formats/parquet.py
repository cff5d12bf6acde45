"""Parquet, by pyarrow (extra ``parquet``): the columns of a CSV, or a column of vectors an adapter."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from losa_cache.apply.predict.formats.base import ROWS, Format
from losa_cache.apply.predict.table import FEATURES, Rows, Table, regrouped
from losa_cache.extras import extra
from losa_cache.files import replacing

if TYPE_CHECKING:
    import pyarrow


class Parquet(Format):
    """Texts and float32; of feature vectors lists of fixed length. Row groups have 8192 rows."""

    suffix = ".parquet"
    predictions = features = True

    def require(self) -> None:
        """Ask for pyarrow."""
        with extra("pyarrow", "a .parquet file needs pyarrow", "parquet"):
            import pyarrow.parquet  # noqa: F401

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; the columns must be those of the table."""
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as file:
                schema = _schema(table)
                if not file.schema_arrow.equals(schema):
                    columns = (f"{own.name} ({own.type})" for own in file.schema_arrow)
                    raise ValueError(f"it has the columns {', '.join(columns)[:200]}")
                for batch in file.iter_batches(ROWS):
                    yield _rows(table, batch)
        except pyarrow.ArrowException as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"it is no Parquet file ({error})") from error

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write a row group for every 8192 rows."""
        from pyarrow import parquet

        schema = _schema(table)
        with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:
            for part in regrouped(rows, ROWS):
                writer.write_batch(_batch(table, part, schema), row_group_size=ROWS)


def _schema(table: Table) -> "pyarrow.Schema":
    import pyarrow

    fields: list[tuple[str, Any]] = [("id", pyarrow.string())]
    for answer in table.answers:
        if answer.kind == FEATURES:
            fields.append((answer.name, pyarrow.list_(pyarrow.float32(), answer.width)))
        else:
            kinds = [pyarrow.string() if text else pyarrow.float32() for text in answer.texts]
            fields += zip(answer.columns, kinds, strict=True)
    return pyarrow.schema(fields)


def _batch(table: Table, rows: Rows, schema: "pyarrow.Schema") -> "pyarrow.RecordBatch":
    import pyarrow

    columns: list[Any] = [pyarrow.array(rows.ids, pyarrow.string())]
    for answer, values in zip(table.answers, rows.values, strict=True):
        if answer.kind == FEATURES:
            flat = pyarrow.array(values.reshape(-1))
            columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, answer.width))
            continue
        names = np.array(answer.classes, dtype=object)
        for place, text in enumerate(answer.texts):
            own = np.ascontiguousarray(values[:, place])
            columns.append(pyarrow.array(names[own.astype(np.int64)] if text else own))
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _rows(table: Table, batch: "pyarrow.RecordBatch") -> Rows:
    values, at = [], 1
    for answer in table.answers:
        if answer.kind == FEATURES:
            own = batch.column(at).flatten().to_numpy(zero_copy_only=False).reshape(-1, answer.width)
        else:
            numbers = {name: number for number, name in enumerate(answer.classes)}
            cut = [batch.column(at + place) for place in range(answer.width)]
            own = np.stack(
                [
                    _numbered(column.to_pylist(), numbers) if text else column.to_numpy(zero_copy_only=False)
                    for column, text in zip(cut, answer.texts, strict=True)
                ],
                1,
            )
        values.append(own.astype(np.float32, copy=False))
        at += len(answer.columns)
    return Rows(batch.column(0).to_pylist(), tuple(values))


def _numbered(names: list[str], numbers: dict[str, int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    if unknown := set(names) - numbers.keys():
        raise ValueError(f"it names {min(map(str, unknown))!r}, which is no class")
    return np.array([numbers[name] for name in names], dtype=np.float32)


FORMAT = Parquet()
