"""WebDataset: tar files of samples, whose members share the name up to its first dot."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from losa_cache.data.archives import Archive, from_archives, numbered, target_columns_of
from losa_cache.data.columns import IMAGE, LABEL, Columns
from losa_cache.data.download import fetched
from losa_cache.data.label_files import read_names
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples
from losa_cache.data.shards import shards_of
from losa_cache.data.sources.folder import EXTENSIONS, SPLITS, canonical, split_in
from losa_cache.data.spec import SourceSpec
from losa_cache.data.tar_shard import DamagedShardError, Part, Record, read_shard
from losa_cache.data.target_columns import TargetColumn
from losa_cache.errors import UserError
from losa_cache.folders import is_url
from losa_cache.outside import UnreadableError
from losa_cache.targets.from_data import masks_of, values_of
from losa_cache.targets.source import Source

SPEC = SourceSpec(prefix=True, whole=True, patterns=True, suffixes=(".tar",), columns=True)

NAME = "wds"
CLASSES = "classnames.txt"
"""File beside the shards, or above their folder, that names the classes in the order of their numbers."""

TRAIN, VAL, BOTH = "train", "val", "trainval"
_BOTH = re.compile(r"train[-_]?val(?:id(?:ation)?)?(?![a-z])", re.IGNORECASE)
_CLS, _JSON = "cls", "json"
_FIELDS = ("label", "cls", "class", "target", "class_id", "class_name")
"""Fields of a sample's JSON that may be its label."""
_IMAGES = tuple(suffix.removeprefix(".") for suffix in EXTENSIONS)
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_NO_NAME = re.compile(r"-*[0-9]+")  # what looks like a number and is none is a mistake, not the name of a class
_MOST_TEXT = 1024 * 1024  # bytes of a label or of a sample's JSON


@dataclass
class _Table:
    """What the shards say of their samples, a list for each column.

    Attributes:
        keys, shards: of each sample its key, and the number of its shard.
        images: where its image lies.
        labels: its label.
        columns: further columns: values of JSON or text, or where a mask lies.
    """

    keys: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    images: list[Part] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)


def load(request: Request) -> Samples:
    """Read the headers of all shards of a split, and their labels.

    A sample's image is its only member with the suffix of an image (or the one that ``--columns image=jpg`` names), its
    label the number or name in its ``.cls`` or, if it has none, in the field ``label``, ``cls``, ``class``, ``target``,
    ``class_id`` or ``class_name`` of its ``.json`` (or what ``--columns label=...`` names: a suffix, or a field of the
    JSON). Samples without an image are refused. Numbers are named by ``classnames.txt`` beside the shards or above
    their folder, if there is one.

    Shards say their split by their names, or by the names of their folders; those that say none are of training. Ids
    are keys; if shards share keys, the shard's name comes before them.

    Raises:
        UserError: for shards that cannot be fetched or read, a split that none of them is of, or samples that are not
            as above.
    """
    shards = _of_split(shards_of(request.name), canonical(request.split), request.name)
    paths = [fetched(shard, request.home) if is_url(shard) else Path(shard) for shard in shards]
    archives = [Archive(path) for path in paths]
    where = f"data set 'wds:{request.name}'"
    targets = target_columns_of(request.columns, where)
    table = _Table(columns={each.column: [] for each in targets.values()})
    for number, archive in enumerate(archives):
        for record in _records(shards[number], archive.path):
            _add(table, record, number, archive, request.columns)
    if not table.keys:
        raise UserError(f"{where} holds no samples: name tar files of images.")
    ids = table.keys
    if len({*ids}) < len(ids):
        ids = [f"{paths[shard].stem}/{key}" for shard, key in zip(table.shards, table.keys, strict=True)]
    if len({*ids}) < len(ids):
        raise UserError(f"{where} has shards of one name that share keys: rename the shards.")
    classes, labels = numbered(table.labels, ids, where=where, names=_class_names(paths[0]))

    def reader(parts: Sequence[Part]) -> Callable[[int], bytes]:
        return lambda i: archives[table.shards[i]].read(*parts[i])

    return from_archives(
        NAME,
        canonical(request.split),
        classes,
        ids,
        labels,
        (size for _, size in table.images),
        encoded=reader(table.images),
        archive=lambda i: paths[table.shards[i]],
        pixels=request.pixels,
        targets={
            name: _targets(each, table.columns[each.column], ids, paths[0].parent, reader)
            for name, each in targets.items()
        },
    )


def other_splits(request: Request) -> list[str]:
    """List the other splits that shards are of, by their names, without those that share images with this one."""
    split = canonical(request.split)
    splits = {each or TRAIN for each in _splits(shards_of(request.name), split).values()} - {split}
    if split == BOTH:
        splits -= {TRAIN, VAL}
    return sorted(splits - {BOTH} if split in (TRAIN, VAL) else splits)


def _of_split(shards: list[str], split: str, name: str) -> list[str]:
    """Choose the shards of a split. Shards that say no split are of training.

    Raises:
        UserError: if none is of the split, or if it is not clear to which split some belong.
    """
    where = f"data set 'wds:{name}'"
    splits = _splits(shards, split)
    if split not in (*SPLITS, BOTH):
        wanted = [shard for shard in shards if _is_called(shard, split)]
    else:
        unnamed = [shard for shard, each in splits.items() if each is None]
        known = sorted(each for each in {*splits.values()} if each is not None)
        if unnamed and known not in ([], [TRAIN]):
            raise UserError(
                f"{where} holds shards such as {os.path.basename(unnamed[0])!r}, whose names say no split, beside "
                f"shards of {', '.join(known)}: name the shards of one split by a pattern."
            )
        wanted = [shard for shard, each in splits.items() if (each or TRAIN) == split]
    if not wanted:
        there = ", ".join(sorted({each or TRAIN for each in splits.values()}))
        raise UserError(
            f"{where} has no shards of the split {split!r}; it has: {there} (a shard says its split by its name or "
            "folder, as test-000.tar and test/000.tar do)."
        )
    return wanted


def _splits(shards: list[str], asked: str) -> dict[str, str | None]:
    """Say of which split each shard is. ``trainval`` is training where nothing else is training or validation."""
    splits = {shard: _split_of(shard) for shard in shards}
    if asked != BOTH and not {TRAIN, VAL} & {*splits.values()}:
        splits = {shard: TRAIN if each == BOTH else each for shard, each in splits.items()}
    return splits


def _split_of(shard: str) -> str | None:
    folder, stem = _folder_and_stem(shard)
    if _BOTH.search(stem):
        return BOTH
    return split_in(stem) or (
        BOTH if _BOTH.fullmatch(folder) else canonical(folder) if canonical(folder) in SPLITS else None
    )


def _is_called(shard: str, split: str) -> bool:
    """Tell whether a shard or its folder is called by the name of a split that has no usual name."""
    folder, stem = _folder_and_stem(shard)
    named = re.search(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", stem, re.IGNORECASE)
    return named is not None or folder == split


def _folder_and_stem(shard: str) -> tuple[str, str]:
    folder, base = os.path.split(shard)
    return os.path.basename(folder), base.partition(".")[0]


def _records(shard: str, path: Path) -> Iterator[Record]:
    """Read a shard. A copy of a URL's file that is no whole tar file is removed, so that it is fetched again.

    Servers answer with a page to log in, and some do not say how long a file is.
    """
    try:
        yield from read_shard(path)
    except DamagedShardError as error:
        if not is_url(shard):
            raise
        path.unlink(missing_ok=True)
        raise UserError(
            f"{shard!r} did not come as a whole tar file, and its copy is removed: run the same command again, or copy "
            "the file here."
        ) from error


def _add(table: _Table, record: Record, number: int, archive: Archive, columns: Columns) -> None:
    """Take a sample into the table.

    Raises:
        UserError: for a sample without an image or a column that is named, or JSON that is none.
    """
    where = f"sample {record.key!r} of {str(archive.path)!r}"
    table.keys.append(record.key)
    table.shards.append(number)
    image = _image(record, columns, where)
    table.images.append(record.parts[image])
    texts = _Texts(record, archive, where)
    asked = columns.roles.get(LABEL)
    if asked is not None:
        label = texts.column(asked)
    elif _CLS in record.parts:
        label = texts.column(_CLS)
    else:
        label = next((texts.json[name] for name in _FIELDS if name in texts.json), None)
    if not isinstance(label, int | str | None):
        raise UserError(f"{where} has the label {str(label)[:80]!r}: it must be a whole number or a name.")
    if isinstance(label, str) and _NO_NAME.fullmatch(label) and not _NUMBER.fullmatch(label):
        raise UserError(f"{where} has the label {label[:80]!r}, which is no number of a class: number them from 0.")
    if label is None and (dotted := _dotted_label(record, image)) is not None:
        raise UserError(
            f"{where} has {dotted!r} and no 'cls': a key ends at its first dot, so replace the other dots in the names "
            "of its members."
        )
    table.labels.append(label)
    for column, values in table.columns.items():
        mask = column.endswith(_IMAGES) and column in record.parts
        values.append(record.parts[column] if mask else texts.column(column))


def _dotted_label(record: Record, image: str) -> str | None:
    """Give the member that seems to be the label of an image called ``a.1.png``, of which the key is ``a``."""
    stem, dot, _ = image.rpartition(".")
    beside = (f"{stem}{dot}{_JSON}",) if dot else ()
    return next((name for name in record.parts if name.endswith(f".{_CLS}") or name in beside), None)


def _image(record: Record, columns: Columns, where: str) -> str:
    """Give the member that is the image."""
    asked = columns.roles.get(IMAGE)
    if asked is not None:
        if asked not in record.parts:
            raise UserError(f"{where} has no {asked!r}: it has {', '.join(record.parts)}.")
        return asked
    every = [suffix for suffix in record.parts if suffix.endswith(_IMAGES)]
    images = [suffix for suffix in every if suffix not in columns.targets]
    whole = [suffix for suffix in images if suffix in _IMAGES]
    if len(whole if whole else images) != 1:
        raise UserError(
            f"{where} has {len(every) or 'no'} images ({', '.join(every or record.parts)}): "
            + ("say which it is, as in --columns image=jpg." if every else "pack each sample with its image.")
        )
    return (whole or images)[0]


class _Texts:
    """The texts of a sample, read when they are needed."""

    def __init__(self, record: Record, archive: Archive, where: str) -> None:
        self._record, self._archive, self._where = record, archive, where
        self._json: dict[str, Any] | None = None

    @property
    def json(self) -> dict[str, Any]:
        """The fields of the JSON; none if there is no JSON."""
        if self._json is None:
            self._json = {}
            if _JSON in self._record.parts:
                try:
                    self._json = msgspec.json.decode(self._read(_JSON), type=dict[str, Any])
                except (msgspec.DecodeError, RecursionError) as error:
                    raise UserError(f"{self._where} has JSON that cannot be read ({error}): pack it again.") from error
        return self._json

    def column(self, name: str) -> Any:
        """Give the text of a member, as a number if it is one, or a field of the JSON.

        Raises:
            UserError: if it has neither.
        """
        if name in self._record.parts:
            try:
                text = self._read(name).decode().strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{self._where} has a {name!r} that is no text: name another column.") from error
            return int(text) if _NUMBER.fullmatch(text) else text
        if name not in self.json:
            known = ", ".join([*self._record.parts, *self.json])
            raise UserError(f"{self._where} has no {name!r}: it has {known}.")
        return self.json[name]

    def _read(self, suffix: str) -> bytes:
        offset, size = self._record.parts[suffix]
        try:
            if size > _MOST_TEXT:
                raise ValueError(f"it has {size} bytes")
            return self._archive.read(offset, size)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._where} has a {suffix!r} that cannot be read ({error}).") from error


def _targets(
    wanted: TargetColumn,
    values: list[Any],
    ids: Sequence[str],
    folder: Path,
    reader: Callable[[Sequence[Part]], Callable[[int], bytes]],
) -> Source:
    if all(isinstance(value, tuple) for value in values):  # JSON has none
        return masks_of(folder, wanted.column, ids, reader(values), kind=wanted.kind)
    return values_of(folder, wanted.column, ids, values, kind=wanted.kind)


def _class_names(shard: Path) -> list[str] | None:
    """Read the names of the classes, if a file gives them."""
    path = next((file for folder in shard.parents[:2] if (file := folder / CLASSES).is_file()), None)
    try:
        return None if path is None else read_names(path)
    except UnreadableError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): write the name of a class in each line.") from error
