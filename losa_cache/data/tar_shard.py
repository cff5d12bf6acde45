"""The samples of one tar file, as WebDataset writes them: members of one key, one behind the other.

The headers are read once. Images are read later, at their offsets.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from losa_cache.data.scan import hidden
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, open_file

Part = tuple[int, int]
"""Offset and number of bytes of a member."""

_BLOCK = 512  # bytes of a header
_MOST_PADDING = 1024 * 1024  # behind the end


class DamagedShardError(UserError):
    """A shard is no tar file, or not a whole one."""


@dataclass
class Record:
    """One sample.

    Attributes:
        key: its name without what follows the first dot of the base name.
        parts: its members, by what follows that dot, in lower case.
    """

    key: str
    parts: dict[str, Part] = field(default_factory=dict)


def read_shard(path: Path) -> Iterator[Record]:
    """Yield the samples of a tar file, in their order. Hidden and system files are left out.

    Raises:
        DamagedShardError: for a file that is no complete tar file.
        UserError: for one that is compressed, holds something other than files, a name that leads out of a folder, or
            members of one key that do not follow each other.
    """
    seen: set[str] = set()
    record: Record | None = None
    for name, part in _members(path):
        folder, base = os.path.split(name)
        stem, dot, suffix = base.partition(".")
        if not (dot and stem):
            continue  # a listing or a read-me beside the samples
        key, suffix = os.path.join(folder, stem), suffix.lower()
        if record is None or record.key != key:
            if record is not None:
                yield record
            if key in seen:
                raise UserError(
                    f"shard {str(path)!r} has the key {key!r} in two places: pack each sample in one place."
                )
            seen.add(key)
            record = Record(key)
        if suffix in record.parts:
            raise UserError(f"shard {str(path)!r} holds {name!r} twice: leave one out.")
        record.parts[suffix] = part
    if record is not None:
        yield record


def _members(path: Path) -> Iterator[tuple[str, Part]]:
    try:
        with open_file(path) as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"shard {str(path)!r} is compressed, and images compress no further: gunzip it first.")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in iter(tar.next, None):
                    tar.members = []  # type: ignore[attr-defined]  # or they stay in memory: a kilobyte each
                    if member.isdir():
                        continue
                    name = member.name.removeprefix("./")
                    if not member.isreg():
                        raise UserError(
                            f"shard {str(path)!r} holds {name!r}, a link or device: pack the files themselves."
                        )
                    if name.startswith("/") or ".." in name.split("/"):
                        raise UserError(f"shard {str(path)!r} holds {name!r}, which leads out of a folder: rename it.")
                    if member.issparse():
                        raise UserError(
                            f"shard {str(path)!r} holds {name!r} as a sparse file: pack it without --sparse."
                        )
                    if not any(map(hidden, name.split("/"))):
                        yield name, (member.offset_data, member.size)
                end = tar.offset
            _require_end(path, file.fileno(), end)
    except (tarfile.TarError, UnreadableError, OSError, ValueError, EOFError) as error:
        raise DamagedShardError(f"shard {str(path)!r} cannot be read ({error}): fetch or write it again.") from error


def _require_end(path: Path, file: int, end: int) -> None:
    """Refuse what tarfile takes for the end: a damaged header, a cut between two members, a second tar file behind.

    A tar file ends with two blocks of zeros.
    """
    rest = os.pread(file, _MOST_PADDING + 1, end)
    if len(rest) < _BLOCK:
        raise DamagedShardError(f"shard {str(path)!r} lacks its end: fetch or write it again.")
    if any(rest[:_BLOCK]):
        raise DamagedShardError(f"shard {str(path)!r} is damaged at byte {end}: fetch or write it again.")
    if len(rest) > _MOST_PADDING or any(rest):
        raise UserError(f"shard {str(path)!r} goes on behind its end, at byte {end}: keep each tar file by itself.")
