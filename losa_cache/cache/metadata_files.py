"""The metadata files of a cache, which are all files except the shards, and the copy of them beside the store.

The copy is their receipt: it says what each file must be, and a damaged file is restored from it. The copy is always
    written first, as a whole. Then its files are installed in the store, the root's ``zarr.json`` last. So if the root
    says that the cache is complete, the list of files fits it.
"""

import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.storage import LocalStore

from losa_cache.cache.build import build_metadata
from losa_cache.cache.checked import REPAIR, require_own, sha256
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.storage import StorePath
from losa_cache.cache.stores.local import LocalPath
from losa_cache.cache.target_arrays import TARGETS
from losa_cache.errors import UserError
from losa_cache.files import clear, publish, sync_tree, unsealed, write_sealed, write_whole
from losa_cache.outside import UnreadableError, fit, parse_json

ROOT, LIST = "zarr.json", "files.json"


@dataclass(frozen=True)
class MetadataFiles:
    """The metadata files of a cache and their copy, to be read.

    Attributes:
        store: the ``.zarr`` folder.
        receipts: the folder beside it.
    """

    store: StorePath
    receipts: StorePath

    @property
    def copy(self) -> StorePath:
        """The copy: a Zarr group without shards, and the list of its files."""
        return self.receipts / "core"

    @property
    def copied(self) -> bool:
        """Whether there is a copy, or part of one."""
        return self.copy.is_folder(LIST, ROOT)

    def files(self) -> dict[str, str]:
        """Read the copy's list, the sha256 of each file by name; the root's ``zarr.json`` comes last.

        Raises:
            OSError, ValueError: if the list is not there or was altered, or names a file outside the store.
        """
        try:
            listed = fit(unsealed((self.copy / LIST).read(), LIST).get("files"), dict[str, str])
        except UnreadableError as error:
            raise ValueError(f"{LIST}: {error}") from error
        if astray := [name for name in listed if name.startswith("/") or ".." in name.split("/")]:
            raise ValueError(
                f"{LIST} names {astray[0]!r}"
            )  # a server's list says where files are put when it is copied
        return {name: listed[name] for name in sorted(listed, key=lambda name: (name == ROOT, name))}

    def digests(self) -> dict[str, str] | None:
        """Give the sha256 that every file must have, as :meth:`files` does; ``None`` for a store that came without
        receipts.

        Raises:
            UserError: if there are receipts, but the list cannot be read.
        """
        try:
            return self.files()
        except (OSError, ValueError) as error:
            if not self.has_receipts:
                return None
            reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise UserError(
                f"{str(self.copy / LIST)!r}, the list of the files of {str(self.store)!r}, cannot be read ({reason}): "
                f"{REPAIR}."
            ) from error

    @property
    def has_receipts(self) -> bool:
        """Whether there are receipts, or some of them (the lock and temporary files do not count)."""
        if self.receipts.lists:
            return any(name != "lock" and not name.endswith(".partial") for name, _ in self.receipts.scan())
        return self.copied or (self.receipts / "000000.json").is_file()

    def names(self) -> list[str]:
        """Give the names of the metadata files, from the copy's list or as they are found; the root's ``zarr.json``
        comes last.

        Raises:
            UserError: if there is no list, and the store cannot list its files.
        """
        try:
            return list(self.files())
        except (OSError, ValueError) as error:
            if not self.store.lists:
                raise UserError(
                    f"{str(self.copy / LIST)!r}, the list of the files of {str(self.store)!r}, cannot be read, and the "
                    "server cannot list files: put the .receipts folder beside it."
                ) from error
            found = (name for name, _ in self.store.scan())
            return sorted(filter(is_metadata, found), key=lambda name: (name == ROOT, name))

    def damaged(self, identity: str | None = None) -> tuple[list[str], list[str]]:
        """Check every file and give the names of those that are damaged in the store, and of those damaged in the copy.

        Args:
            identity: that the cache must have; ``None``: nobody knows.

        Raises:
            OSError, ValueError: as :meth:`files`.
            UserError: for a file that is damaged in both, or if store and copy are of different caches.
        """
        files = self.files()
        in_store, in_copy = (
            [name for name, digest in files.items() if _sha256(folder / name) != digest]
            for folder in (self.store, self.copy)
        )
        self._require_one(in_store, in_copy)
        if ROOT in in_store and (identity is not None or len(in_store) > 1):
            self._require_kin(identity)
        return in_store, in_copy

    def _require_kin(self, identity: str | None) -> None:
        here, there = (_identity(folder / ROOT) for folder in (self.store, self.copy))
        if here is not None and there is not None and here != there != identity:
            raise UserError(
                f"{str(self.store)!r} belongs to the cache {here[:19]}, but its receipts {str(self.receipts)!r} to the "
                f"cache {there[:19]}: restore the one that was exchanged."
            )

    def _require_one(self, in_store: list[str], in_copy: list[str]) -> None:
        if lost := sorted({*in_store} & {*in_copy}):
            raise UserError(
                f"{lost[0]} of {str(self.store)!r} is damaged, and its copy in {str(self.copy)!r}, too: extract "
                "again to another --out."
            )


class WritableMetadata(MetadataFiles):
    """The metadata files of a cache and their copy, to be written by the process that has the lock.

    An implementation guarantees this order: first the copy, its list last; then the files in the store, the root's
        ``zarr.json`` last. After a kill at any instruction the cache is either as before, or :meth:`repair` can restore
        it.
    """

    @abstractmethod
    def create(
        self,
        manifest: Manifest,
        layout: Layout,
        *,
        labels: NDArray[np.int64],
        ids: Sequence[str],
        tail: Mapping[str, Tensor],
        scales: Mapping[str, Tensor],
    ) -> None:
        """Write copy and store (arguments as of :func:`build_metadata`)."""

    @abstractmethod
    def change(self, manifest: Manifest, edit: Callable[[zarr.Group], None]) -> None:
        """Write other arrays and attributes, first to the copy and then to the store; the store's root comes last.

        Args:
            manifest: the new attributes.
            edit: is given the group in the making, and changes its arrays. Where nothing differs in the end, nothing
                is written.
        """

    def finish(self, manifest: Manifest, labels: NDArray[np.int64]) -> None:
        """Write the final labels and attributes, as :meth:`change` does."""

        def edit(group: zarr.Group) -> None:
            group["labels"][...] = labels  # type: ignore[index]

        self.change(manifest, edit)

    @abstractmethod
    def repair(self, identity: str | None = None) -> None:
        """Restore damaged files: those of the store from the copy, and those of the copy from the store.

        Args:
            identity: that the cache must have; ``None``: nobody knows.

        Raises:
            UserError: for a file that is damaged in both, or if store and copy are of different caches.
        """


def alone() -> None:
    """Ask nobody: no other process changes these files."""


@dataclass(frozen=True)
class LocalMetadata(WritableMetadata):
    """The metadata files of a cache on a file system and their copy, to be written.

    Attributes:
        store, receipts: as of ``MetadataFiles``.
        ask: raises if this process may no more change them.
    """

    store: LocalPath
    receipts: LocalPath
    ask: Callable[[], None] = alone

    @property
    def copy(self) -> LocalPath:
        """The copy."""
        return self.receipts / "core"

    @property
    def copied(self) -> bool:
        """As :class:`MetadataFiles` says; a copy that a kill left half replaced counts, too."""
        return self.copy.is_dir() or self._old.is_dir()

    @property
    def _next(self) -> LocalPath:
        return self.receipts / "core.partial"

    @property
    def _old(self) -> LocalPath:
        return self.receipts / "core.old"

    def create(self, *arguments: Any, **arrays: Any) -> None:
        """As :class:`WritableMetadata` says; each is built under a temporary name and renamed."""
        clear(self._next)
        build_metadata(self._next, *arguments, **arrays)
        self._replace_copy()
        partial = self.store.with_name(self.store.name + ".partial")
        clear(partial)
        shutil.copytree(self.copy, partial, ignore=shutil.ignore_patterns(LIST))
        sync_tree(partial)
        self.ask()
        publish(partial, self.store)

    def change(self, manifest: Manifest, edit: Callable[[zarr.Group], None]) -> None:
        """As :class:`WritableMetadata` says; a copy that is already final stays as it is, because others may be reading
        it.
        """
        self._begin_copy()
        group = zarr.open_group(LocalStore(self._next), mode="r+")
        with zarr.config.set({"array.write_empty_chunks": True}):
            edit(group)
        group.attrs.put(manifest.to_attributes())
        self._install()

    def follow(self, source: MetadataFiles, digests: Mapping[str, str]) -> None:
        """Become the metadata files of another cache of the same shards, in the order of :meth:`change`.

        Args:
            source: of the other cache.
            digests: sha256 of its files, by name.

        Raises:
            UserError: for a file of the other cache that is damaged.
        """
        clear(self._next)
        for name, digest in digests.items():
            content = (source.store / name).read()
            require_own(name, content, {name: digest}, source.store)
            self._put(name, content)
        self._install()

    @property
    def left_halfway(self) -> bool:
        """Whether a kill left the store's files behind those of the copy: the root's ``zarr.json`` comes last."""
        if self._old.is_dir() or not self.copy.is_dir():
            return True
        try:
            return _sha256(self.store / ROOT) != self.files()[ROOT]
        except (OSError, ValueError, KeyError):
            return False

    def _install(self) -> None:
        """Put the new copy in its place, then its files into the store, and remove what is no more."""
        if _listed(self._next) == self.files():
            shutil.rmtree(self._next)
        else:
            self._replace_copy()
        self._copy_files(self.damaged()[0], self.copy, self.store)
        self._remove_unlisted()

    def repair(self, identity: str | None = None) -> None:
        """As :class:`WritableMetadata` says."""
        self.ask()
        if self.copy.is_dir():
            clear(self._old)  # a kill after it was replaced: it may be there in part
        elif self._old.is_dir():  # a kill while it was replaced
            self._old.rename(self.copy)
        if not self.copied:  # a store that came without it
            self._begin_copy()
            self._replace_copy()
        try:
            in_store, in_copy = self.damaged(identity)
        except (OSError, ValueError):
            self._list_anew()
            return
        self._copy_files(in_store, self.copy, self.store)
        self._copy_files(in_copy, self.store, self.copy)

    def _list_anew(self) -> None:
        """Write the list again, if store and copy agree."""
        names = list(_listed(self.copy))
        apart = [n for n in names if _sha256(self.copy / n) != _sha256(self.store / n)]
        self._require_one(apart, apart)
        write_sealed(self.copy / LIST, {"files": _listed(self.copy)})

    def _remove_unlisted(self) -> None:
        """Remove what is left of target sets that the cache has no more; readers ignore it."""
        listed, folder = self.files(), self.store / TARGETS
        for name, _ in list(folder.scan()):
            if f"{TARGETS}/{name}" not in listed:
                (folder / name).unlink()
        for below in sorted([folder, *folder.rglob("*")], reverse=True):  # the deepest first
            with suppress(OSError):  # it holds something, or is a file
                below.rmdir()

    def _begin_copy(self) -> None:
        clear(self._next)
        for name in self.names():
            try:
                content = (self.store / name).read()
            except (OSError, UnreadableError) as error:
                raise UserError(
                    f"{name} of {str(self.store)!r} cannot be read ({error}): extract again to another --out."
                ) from error
            self._put(name, content)

    def _put(self, name: str, content: bytes) -> None:
        """Write a file of the next copy, which is synced and renamed as a whole."""
        (self._next / name).parent.mkdir(parents=True, exist_ok=True)
        (self._next / name).write_bytes(content)

    def _replace_copy(self) -> None:
        write_sealed(self._next / LIST, {"files": _listed(self._next)})
        sync_tree(self._next)
        self.ask()
        clear(self._old)
        if self.copy.exists():  # a kill must find it whole or not at all
            self.copy.rename(self._old)
        publish(self._next, self.copy)
        clear(self._old)

    def _copy_files(self, names: Iterable[str], source: LocalPath, target: LocalPath) -> None:
        for name in names:
            self.ask()
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(target / name, (source / name).read_bytes())


class _Root(TypedDict):
    attributes: dict[str, Any]


def is_metadata(name: str) -> bool:
    """Whether a file is a metadata file: neither a shard nor a remainder of a killed writer."""
    return not (name.rpartition("/")[2].startswith("c.") or name.endswith(".partial"))


def _listed(folder: LocalPath) -> dict[str, str]:
    return {name: _sha256(folder / name) for name in sorted(name for name, _ in folder.scan()) if name != LIST}


def _sha256(path: StorePath) -> str:
    """Hash a small file; empty if it cannot be read."""
    try:
        return sha256(path.read())
    except (OSError, UnreadableError):
        return ""


def _identity(root: StorePath) -> str | None:
    """Give the identity in a group's ``zarr.json``, if its fields agree with it; otherwise ``None``."""
    try:
        return Manifest.from_attributes(parse_json(root.read(), _Root)["attributes"], str(root)).identity
    except (OSError, UnreadableError, UserError):
        return None
