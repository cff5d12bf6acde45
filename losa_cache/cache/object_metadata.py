"""The metadata files of a cache in an object store: they are written on a file system first."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.cache.checked import sha256
from losa_cache.cache.metadata_files import LIST, ROOT, LocalMetadata, WritableMetadata, alone, is_metadata
from losa_cache.cache.object_store import ObjectPath
from losa_cache.errors import UserError


@dataclass(frozen=True)
class ObjectMetadata(WritableMetadata):
    """Metadata files and their copy in an object store: changed in a scratch folder, then uploaded where they differ.

    The copy is uploaded first, its list last; then the files of the store, its root's ``zarr.json`` last. After a kill
    the cache is either as before, or :meth:`LocalMetadata.repair` can restore it.

    Attributes:
        store, receipts: as of ``MetadataFiles``.
        local: the same in the scratch folder.
        ask: as of ``LocalMetadata``.
    """

    store: ObjectPath
    receipts: ObjectPath
    local: LocalMetadata
    ask: Callable[[], None] = alone

    @property
    def copy(self) -> ObjectPath:
        """The copy."""
        return self.receipts / "core"

    def create(self, *arguments: Any, **arrays: Any) -> None:
        """As ``WritableMetadata`` says."""
        self.local.create(*arguments, **arrays)
        self._push({})

    def change(self, *arguments: Any) -> None:
        """As ``WritableMetadata`` says, after either of the others."""
        before = self._digests()
        self.local.change(*arguments)
        self._push(before)

    def repair(self, identity: str | None = None) -> None:
        """As ``WritableMetadata`` says."""
        with suppress(OSError, ValueError):  # no list: it is made anew
            self.damaged(identity)  # refuses what is lost in both, by its URL
        for folder, there in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
            names = [name for name, _ in there.scan()] if there.lists else [*self.names(), LIST]
            for name in filter(is_metadata, names):
                try:
                    content = (there / name).read()
                except FileNotFoundError:
                    continue
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        before = self._digests()
        self.local.repair(identity)
        self._push(before)

    @property
    def _folders(self) -> tuple[tuple[Path, ObjectPath], tuple[Path, ObjectPath]]:
        return (self.local.copy, self.copy), (self.local.store, self.store)

    def _files(self) -> dict[ObjectPath, Path]:
        """Give every file in the scratch folder by its place in the store, in the order of upload."""
        return {
            there / name: folder / name
            for folder, there in self._folders
            for name in _last(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        }

    def _digests(self) -> dict[ObjectPath, str]:
        return {place: sha256(file.read_bytes()) for place, file in self._files().items()}

    def _push(self, before: dict[ObjectPath, str]) -> None:
        """Upload what is new or differs, then remove what is no more.

        A server may refuse to remove objects. What stays is not listed, so no reader looks at it.
        """
        files = self._files()
        for place, file in files.items():
            content = file.read_bytes()
            if before.get(place) != sha256(content):
                self.ask()
                place.write(content)
        for place in before.keys() - files.keys():
            self.ask()
            with suppress(UserError):
                place.unlink(missing_ok=True)


def _last(names: Iterable[str]) -> list[str]:
    """Sort the names in the order of upload: the root and then the list come last."""
    return sorted(names, key=lambda name: (name == LIST, name == ROOT, name))
