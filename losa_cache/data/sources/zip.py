"""Class folders inside a zip file, read without unpacking it."""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from losa_cache.data import medical
from losa_cache.data.archives import MOST_BYTES, Archive, from_archives
from losa_cache.data.left import BESIDE, BESIDE_SPLITS, HIDDEN, OTHERS, Left
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples
from losa_cache.data.scan import hidden
from losa_cache.data.sources.folder import (
    EXTENSIONS,
    SPLITS,
    UNLABELLED,
    canonical,
    require_no_classes,
    require_no_splits,
    split_in,
)
from losa_cache.data.spec import SourceSpec
from losa_cache.errors import UserError
from losa_cache.folders import given_path
from losa_cache.outside import UnreadableError, most_inflated, open_file

SPEC = SourceSpec(prefix=True, whole=True, suffixes=(".zip",))

NAME = "zip"
IMAGES = EXTENSIONS + medical.SUFFIXES

_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of its name and of further fields
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

Member = zipfile.ZipInfo


def load(request: Request) -> Samples:
    """Read ``<split>/<class>/**/*`` or, where there are no split folders, ``<class>/**/*`` as train.

    Folders that hold nothing but one folder are passed over: ``flowers.zip`` may hold ``flowers/train``. Splits,
    classes and what is left out follow the rules of ``folder``. The fingerprint covers the checksums that the zip file
    has of its members.

    Raises:
        UserError: for a damaged file, encrypted members, a split that is not there, or no images.
    """
    path, split, left = given_path(request.name), canonical(request.split), Left(base=request.name)
    found = _visible(_members(path), left)
    names, members = _below_top([*found]), [*found.values()]
    folders = [name.partition("/")[0] for name in names]
    splits = {folder: canonical(folder) for folder in {*folders} if canonical(folder) in SPLITS}
    where = f"zip file {request.name!r}"
    if len({*splits.values()}) == 1:
        beside = {name.partition("/")[0] for name in names if name.count("/") == 1 and _is_image(name)} - {*splits}
        require_no_classes(where, sorted(splits), sorted(beside))
    chosen = _split_folder(splits, split, folders, request.name)
    if chosen is not None:
        inside = [place for place, folder in enumerate(folders) if folder == chosen]
        for place, folder in enumerate(folders):
            if folder not in splits:
                left.add(BESIDE_SPLITS, names[place])
        names, members = [names[place].partition("/")[2] for place in inside], [members[place] for place in inside]
    _require_no_splits(names, where if chosen is None else f"{where}, in its folder {chosen!r},")
    classes, places = _classes(names, left)
    images = [members[place] for place in places]
    if not images:
        raise UserError(f"{str(path)!r} holds no class folders with images ({', '.join(IMAGES)}).")
    for member in images:
        _require_readable(member, path)
    archive = Archive(path)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(names[place].partition("/")[0], 0) for place in places]
    samples = from_archives(
        NAME,
        split,
        classes,
        [names[place] for place in places],
        np.array(labels, dtype=np.int64),
        (member.CRC for member in images),
        encoded=lambda i: _read(archive, images[i]),
        archive=lambda _: path,
        pixels=request.pixels,
    )
    return replace(samples, left=left)


def other_splits(request: Request) -> list[str]:
    """List the other splits that have folders."""
    names = _below_top([*_visible(_members(given_path(request.name)), Left())])
    splits = {canonical(name.partition("/")[0]) for name in names}
    return [split for split in SPLITS if split in splits and split != canonical(request.split)]


def _members(path: Path) -> Iterator[Member]:
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            yield from archive.infolist()
    except (UnreadableError, zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a zip file ({error}): fetch or write it again.") from error


def _visible(members: Iterator[Member], left: Left) -> dict[str, Member]:
    """Give the files by their names, sorted, without hidden ones.

    Raises:
        UserError: for a name that is there twice.
    """
    found: dict[str, Member] = {}
    for member in members:
        name = "/".join(part for part in member.filename.replace("\\", "/").removeprefix("./").split("/") if part)
        if member.is_dir():
            continue
        if any(map(hidden, name.split("/"))):  # also ".."
            left.add(HIDDEN, name)
        elif name in found:
            raise UserError(f"{left.base!r} holds {name!r} twice: write the zip file again.")
        else:
            found[name] = member
    return dict(sorted(found.items()))


def _below_top(names: list[str]) -> list[str]:
    """Leave out folders above all images that hold nothing but one folder, unless it is a split or the only class.

    A folder called ``pets-test`` stays, too, and is refused: its images are not to be trained on.
    """
    while names:
        tops = {name.partition("/")[0] for name in names if _is_image(name)}
        top = next(iter(tops), "")
        inside = [name.removeprefix(f"{top}/") for name in names]
        deep = all("/" in own for own, name in zip(inside, names, strict=True) if _is_image(name))
        if len(tops) != 1 or not deep or canonical(top) in SPLITS or split_in(top) in ("val", "test"):
            break
        names = inside
    return names


def _split_folder(splits: dict[str, str], split: str, folders: Sequence[str], name: str) -> str | None:
    """Choose the folder of a split; ``None``: the whole is one split.

    Raises:
        UserError: for a split that is not there, or has two folders.
    """
    fitting = sorted(folder for folder, own in splits.items() if own == split)
    if len(fitting) > 1:
        raise UserError(f"{name!r} holds {' and '.join(map(repr, fitting))}, which both name the split {split!r}.")
    if fitting:
        return fitting[0]
    if split not in SPLITS and split in folders:
        return split
    if split != "train" or splits:
        known = ", ".join(key for key in SPLITS if key in splits.values()) or "train (the whole file)"
        raise UserError(f"{name!r} has no split {split!r}; it has: {known}.")
    return None


def _classes(names: Sequence[str], left: Left) -> tuple[list[str], list[int]]:
    """Give the classes, and the places of their images; where there are no folders, all images are of one class."""
    images = [place for place, name in enumerate(names) if _is_image(name)]
    inside = [place for place in images if "/" in names[place]]
    for place in sorted({*range(len(names))} - {*images}):
        left.add(OTHERS, names[place])
    if not inside:
        return [UNLABELLED], images
    for place in sorted({*images} - {*inside}):
        left.add(BESIDE, names[place])
    return sorted({names[place].partition("/")[0] for place in inside}), inside


def _require_no_splits(names: Sequence[str], where: str) -> None:
    below: dict[str, set[str]] = {}
    with_files: set[str] = set()
    for name in names:
        kind, _, rest = name.partition("/")
        if rest:
            below.setdefault(kind, set()).add(rest.partition("/")[0])
            if "/" not in rest:
                with_files.add(kind)
    require_no_splits(
        sorted(below),
        where=lambda kind: f"{where} below {kind!r}" if kind else where,
        inside=below.__getitem__,
        only_folders=lambda kind: kind not in with_files,
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _require_readable(member: Member, path: Path) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise UserError(f"{str(path)!r} is encrypted ({member.filename!r}): unpack it, and name the folder.")
    if member.compress_type not in _METHODS:
        raise UserError(
            f"{str(path)!r} holds {member.filename!r} by compression method {member.compress_type}, and only "
            "stored and deflated members are read: unpack it, and name the folder."
        )


def _read(archive: Archive, member: Member) -> bytes:
    """Read a member by its own offsets: the file position of ``zipfile`` would be shared between processes.

    Raises:
        OSError, ValueError: if it is damaged, or larger than it says.
    """
    if member.file_size > MOST_BYTES:
        raise ValueError(f"it has {member.file_size} bytes, more than {MOST_BYTES}")
    if (
        member.file_size > (most := most_inflated(member.compress_size))
        and member.compress_type == zipfile.ZIP_DEFLATED
    ):
        raise ValueError(f"its {member.compress_size} bytes inflate to {member.file_size}, more than {most}")
    signature, name, extra = _HEADER.unpack(archive.read(member.header_offset, _HEADER.size))
    if signature != _SIGNATURE:
        raise ValueError("the zip file has no member where its directory says")
    content = archive.read(member.header_offset + _HEADER.size + name + extra, member.compress_size)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size + 1)
        except zlib.error as error:
            raise ValueError(f"it is damaged in the zip file ({error})") from error
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError("its checksum in the zip file is another: the zip file is damaged")
    return content
