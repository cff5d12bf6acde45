"""Data sets of the Hugging Face library ``datasets``: saved ones, folders of Parquet files or images, the hub's."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, cast

from losa_cache.data.archives import from_archives, numbered, target_columns_of
from losa_cache.data.columns import IMAGE, LABEL, NAMES, SPLIT, Columns
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples
from losa_cache.data.sources.folder import canonical
from losa_cache.data.spec import SourceSpec
from losa_cache.data.target_columns import TargetColumn
from losa_cache.errors import UserError, nearest
from losa_cache.extras import extra
from losa_cache.folders import given_path
from losa_cache.outside import read_file
from losa_cache.targets.from_data import masks_of, values_of
from losa_cache.targets.source import Source

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

SPEC = SourceSpec(prefix=True, whole=True, remote=True, columns=True)

NAME = "hf"

_SAVED = ("state.json", "dataset_dict.json")  # files of what save_to_disk wrote
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "class", "target", "fine_label")
_MOST_BYTES = 2**31 - 1  # of an image
_HASHED = 4 * 1024**3
"""Bytes of a split that are hashed whole for its fingerprint: some seconds. Of larger splits the ends of images are."""
_END = 4096  # bytes, which in compressed pictures are pixels


def load(request: Request) -> Samples:
    """Open a split: a folder that ``save_to_disk`` wrote, a folder of Parquet files or images, a Parquet file, or an id
    of the hub, which the library fetches into its own cache.

    Images stay encoded until a thread decodes them. The image is the only column of images, or ``image`` or ``img``
    among several; the label is ``label``, ``labels``, ``class``, ``target`` or ``fine_label``, with the names that a
    ``ClassLabel`` gives. ``--columns`` names others, and further columns, which become target sets: images are masks,
    ``ClassLabel`` and texts are classes, numbers and lists of numbers are numbers.

    Ids are the names of the images where each has its own, else row numbers. The library's fingerprint is not used: the
    same data have another one each time they are saved.

    Raises:
        UserError: if the library is not installed or cannot open the data, or for a split or column that is not there.
    """
    where = f"data set 'hf:{request.name}'"
    data = _split(_open(request.name, where), request.split, where)
    columns = request.columns.settled(_conventional(data))
    image, label = _image_column(data, columns, where), _label_column(data, columns, where)
    targets = target_columns_of(columns, where)
    for each in targets.values():
        _require_column(data, each.column, where)
    table = _encoded_table(data, [image, *([label] if label else []), *(each.column for each in targets.values())])
    folder = given_path(request.name)
    files = _Files(data, folder)
    images = _Images(table, image, folder)
    ids = images.ids()
    if all(map(images.outside, range(len(ids)))):
        raise UserError(
            f"{where} holds paths of files outside of it, the first {str(images.file(0))!r}, and not the images "
            "themselves: write it with save_to_disk, which embeds them."
        )
    classes, labels = numbered(
        table.column(label).to_pylist() if label else [None] * len(ids),
        ids,
        where=f"{where}, column {label!r},",
        names=_class_names(data, label),
    )
    return from_archives(
        NAME,
        canonical(request.split),
        classes,
        ids,
        labels,
        images.marks(),
        encoded=images.encoded,
        archive=lambda i: images.file(i) or files.of_row(i),
        pixels=request.pixels,
        targets={name: _targets(data, table, each, folder, ids) for name, each in targets.items()},
    )


def other_splits(request: Request) -> list[str]:
    """List the other splits of the data."""
    opened = _open(request.name, f"data set 'hf:{request.name}'")
    return sorted({canonical(split) for split in _names(opened)} - {canonical(request.split)})


def _open(name: str, where: str) -> "Dataset | DatasetDict":
    with extra("datasets", f"{where} needs the package datasets", "hf"):
        import datasets
    path = given_path(name)
    try:
        if any((path / file).is_file() for file in _SAVED):
            return datasets.load_from_disk(str(path))
        if path.is_file():
            if path.suffix != ".parquet":
                raise UserError(f"{where} is a file and no Parquet file: name a folder.")
            return datasets.load_dataset("parquet", data_files=str(path))
        return datasets.load_dataset(str(path) if path.exists() else name)
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its parts raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{where} cannot be opened ({reason}): name a folder of a data set, or an id of the hub."
        ) from error


def _names(opened: "Dataset | DatasetDict") -> list[str]:
    return list(opened) if isinstance(opened, dict) else [str(opened.split or "train")]


def _split(opened: "Dataset | DatasetDict", split: str, where: str) -> "Dataset":
    """Choose a split by its own name, or by another name of it."""
    names = _names(opened)
    fitting = [name for name in names if name == split] or [n for n in names if canonical(n) == canonical(split)]
    if len(fitting) != 1:
        raise UserError(f"{where} has no split {split!r}; it has: {', '.join(names)}.")
    data = opened[fitting[0]] if isinstance(opened, dict) else opened
    if not len(data):
        raise UserError(f"{where} has no rows in its split {fitting[0]!r}: choose another.")
    return cast("Dataset", data)


def _conventional(data: "Dataset") -> dict[str, tuple[str, ...]]:
    """Give the names, in lower case, that columns of a role have: the only column of images has any name."""
    images = tuple(name.lower() for name in _of_images(data))
    labels = tuple(name.lower() for name in data.features if name.lower() in _LABELS and _labels(data, name))
    return {**NAMES, IMAGE: images if len(images) == 1 else _IMAGES, LABEL: labels, SPLIT: ()}


def _of_images(data: "Dataset") -> list[str]:
    from datasets import Image

    return [name for name, feature in data.features.items() if isinstance(feature, Image)]


def _image_column(data: "Dataset", columns: Columns, where: str) -> str:
    asked, images = columns.roles.get(IMAGE), _of_images(data)
    if asked is not None:
        _require_column(data, asked, where)
        if asked not in images:
            raise UserError(
                f"{where} has no images in its column {asked!r}: name one of {', '.join(images) or 'none'}."
            )
        return asked
    free = [name for name in images if name not in columns.targets]
    fitting = [name for name in free if name.lower() in _IMAGES] if len(free) > 1 else free
    if len(fitting) != 1:
        raise UserError(
            f"{where} has {len(images) or 'no'} columns of images among {', '.join(data.features)}: "
            + (f"say which one with --columns image={images[0]}." if images else "name a data set of images.")
        )
    return fitting[0]


def _label_column(data: "Dataset", columns: Columns, where: str) -> str | None:
    asked = columns.roles.get(LABEL)
    if asked is not None:
        _require_column(data, asked, where)
        if not _labels(data, asked):
            raise UserError(
                f"{where} has {_type(data, asked)} in its column {asked!r}: a label is a whole number or a text."
            )
        return asked
    called = [n for name in _LABELS for n in data.features if n.lower() == name and n not in columns.targets]
    fitting = [name for name in called if _labels(data, name)]
    if called and not fitting:
        raise UserError(
            f"{where} has {_type(data, called[0])} in its column {called[0]!r}, and a label is a whole number or a "
            f"text: name another column (--columns label=COLUMN), or make it a target set (--columns "
            f"{called[0]}:numbers)."
        )
    return fitting[0] if fitting else None


def _labels(data: "Dataset", column: str) -> bool:
    from datasets import ClassLabel, Value

    feature = data.features[column]
    return isinstance(feature, ClassLabel) or (
        isinstance(feature, Value) and feature.dtype.lstrip("u").startswith(("int", "bool", "string", "large_string"))
    )


def _type(data: "Dataset", column: str) -> str:
    """Name the type of a column, for messages."""
    feature = data.features[column]
    return str(getattr(feature, "dtype", type(feature).__name__))


def _require_column(data: "Dataset", column: str, where: str) -> None:
    if column not in data.features:
        known = list(data.features)
        raise UserError(f"{where} has no column {column!r}: it has {', '.join(known)}{nearest(column, known)}.")


def _class_names(data: "Dataset", column: str | None) -> list[str] | None:
    """Give the names of a column of classes, or of a column of lists of them."""
    feature = data.features[column] if column else None
    return getattr(getattr(feature, "feature", feature), "names", None)


def _encoded_table(data: "Dataset", columns: list[str]) -> "pa.Table":
    """Give columns as they are stored: images encoded, nothing copied."""
    from datasets import Image

    data = data.select_columns(list(dict.fromkeys(columns)))
    for name, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    return data.with_format("arrow")[:]


class _Images:
    """A column of images: bytes, or paths of files.

    Args:
        table: of encoded images.
        column: of the images.
        folder: of the data set, for paths.
    """

    def __init__(self, table: "pa.Table", column: str, folder: Path) -> None:
        import datasets
        import pyarrow.compute as pc

        self._bytes = pc.struct_field(table.column(column), "bytes")
        self._paths = pc.struct_field(table.column(column), "path")
        self._folder = os.path.abspath(folder)
        self._allowed = [self._folder, os.path.abspath(datasets.config.HF_CACHE_HOME)]

    def encoded(self, row: int) -> bytes:
        """Give the bytes of an image.

        Raises:
            ValueError, UnreadableError: if there are none, or a file cannot be read.
        """
        content: bytes | None = self._bytes[row].as_py()
        if content is not None:
            return content
        path = self.file(row)
        if path is None:
            raise ValueError("it has neither bytes nor a path")
        if self.outside(row):
            raise ValueError(f"{str(path)!r} lies outside of the data set")
        return read_file(path, at_most=_MOST_BYTES)

    def outside(self, row: int) -> bool:
        """Tell whether an image is a file that lies neither in the data set's folder nor in the library's."""
        path = self.file(row)
        inside = (os.path.join(folder, "") for folder in self._allowed)
        return path is not None and not os.path.abspath(path).startswith(tuple(inside))

    def file(self, row: int) -> Path | None:
        """Give the file of an image that has one."""
        if self._bytes[row].is_valid or not self._paths[row].is_valid:
            return None
        return Path(self._paths[row].as_py())

    def marks(self) -> list[int | str]:
        """Say what the fingerprint covers of each image: the number of its bytes, and a hash of those in the table.

        Uncompressed pictures of one size have as many bytes, whatever they show. Files are compared by their number of
        bytes, as those of folders are.
        """
        sizes = self.sizes()
        marks: list[int | str] = [*sizes]
        whole = sum(sizes) <= _HASHED
        for row, stored in enumerate(value for chunk in self._bytes.chunks for value in chunk):
            if stored.is_valid:
                content = memoryview(stored.as_buffer())
                digest = sha256(content if whole else content[-_END:]).hexdigest()
                marks[row] = f"{sizes[row]}\t{digest}"
        return marks

    def sizes(self) -> list[int]:
        """Give the number of bytes of each image; -1 where there are none."""
        import pyarrow.compute as pc

        sizes = pc.fill_null(pc.binary_length(self._bytes), -1).to_pylist()
        for row, size in enumerate(sizes):
            if size < 0 and (path := self.file(row)) is not None and path.is_file():
                sizes[row] = path.stat().st_size
        return cast(list[int], sizes)

    def ids(self) -> list[str]:
        """Give the names of the images, below the data set's folder, if each has its own; else row numbers."""
        names = [
            path and (os.path.relpath(path, self._folder) if os.path.isabs(path) else path)
            for path in self._paths.to_pylist()
        ]
        if all(names) and len({*names}) == len(names):
            return names
        return [f"{row:06d}" for row in range(len(names))]


class _Files:
    """The files that hold the rows.

    Args:
        data: rows of files, one file's behind the other's.
        folder: of the data set: what stands for its rows where the library does not say their files.
    """

    def __init__(self, data: "Dataset", folder: Path) -> None:
        from datasets import Dataset

        self._paths = [Path(file["filename"]) for file in data.cache_files]
        rows = [len(Dataset.from_file(str(path))) for path in self._paths] if len(self._paths) > 1 else [len(data)]
        if not self._paths or sum(rows) != len(data):
            self._paths, rows = [folder], [len(data)]
        self._ends = list(accumulate(rows))

    def of_row(self, row: int) -> Path:
        """Give the file of a row."""
        return self._paths[bisect_right(self._ends, row)]


def _targets(data: "Dataset", table: "pa.Table", wanted: TargetColumn, folder: Path, ids: Sequence[str]) -> Source:
    from datasets import Image

    column = wanted.column

    if isinstance(data.features[column], Image):
        return masks_of(folder, column, ids, _Images(table, column, folder).encoded, kind=wanted.kind)
    names = _class_names(data, column)
    return values_of(folder, column, ids, table.column(column).to_pylist(), kind=wanted.kind, names=names)
