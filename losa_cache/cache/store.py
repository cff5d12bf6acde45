"""A cache, opened: a Zarr v3 group."""

import errno
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec

from losa_cache.cache.blob import Blob, DirectBlob
from losa_cache.cache.core import ROOT, Core, unpack_ids
from losa_cache.cache.home import known_stores
from losa_cache.cache.layout import Layout
from losa_cache.cache.location import Location, file_size, locate, open_blob, zarr_store
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding, Precision, get_precision
from losa_cache.cache.remote import RemotePath, reaching
from losa_cache.errors import UserError

REPAIR = "losa-cache verify --repair mends it"
REQUESTS = 16  # at the same time, for sizes of files
HELD_OUT_SPLITS = ("test", "val", "valid", "validation", "val200")


@dataclass(frozen=True)
class ActivationCache:
    """An opened cache: everything but the activations, which :class:`BlockReader` reads.

    Attributes:
        path: the ``.zarr`` folder, here or on a server.
        manifest: its attributes.
        layout: chunks and shards of the activations.
        labels: int64 ``(rows,)``; -1 where the sample was skipped.
        ids: sample ids ``(rows,)``.

    Sample s has the rows ``s * V ... s * V + V - 1``, its V views.
    """

    path: Location
    manifest: Manifest
    layout: Layout
    labels: NDArray[np.int64]
    ids: list[str]

    @property
    def precision(self) -> Precision:
        """How the activations are stored."""
        return get_precision(self.manifest.precision)

    @property
    def samples(self) -> NDArray[np.int64]:
        """Numbers of the samples that are there with all their views: all but the skipped ones."""
        return np.flatnonzero((self.labels.reshape(-1, self.manifest.views) >= 0).all(axis=1))

    @property
    def sample_ids(self) -> list[str]:
        """One id a sample."""
        return self.ids[:: self.manifest.views]

    @property
    def remote(self) -> bool:
        """Whether it lies on a server."""
        return isinstance(self.path, RemotePath)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole store."""
        if isinstance(self.path, RemotePath):
            core = sizes([self.path / name for name in self.core.names()])
            return sum(core) + sum(self.shard_sizes().values())
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def shard_sizes(self) -> dict[int, int]:
        """Bytes of each shard that is there, by its number."""
        found = enumerate(sizes([self.shard_path(shard) for shard in range(self.layout.shards)]))
        return {shard: size for shard, size in found if size}

    @property
    def receipts(self) -> Location:
        """Folder beside the store."""
        return receipts_of(self.path)

    @property
    def core(self) -> Core:
        """Every file but the shards, and its copy."""
        return Core(self.path, self.receipts)

    def encoding(self) -> Encoding:
        """Rebuild what decodes the activations.

        Raises:
            UserError: if its constants are not as the protocol says.
        """
        try:
            tokens = self.manifest.tokens
            encoding = self.precision.load(self._tensors("scales"), tokens=tokens["total"], prefix=tokens["prefix"])
            if encoding.stored_shape(*self.manifest.shape) != self.layout.shape[1:]:
                raise ValueError(f"they are of samples of another shape than {self.layout.shape[1:]}")
            return encoding
        except (KeyError, ValueError) as error:
            raise UserError(f"the scales in {str(self.path)!r} cannot be read ({error}): {REPAIR}.") from error

    def tail_tensors(self) -> dict[str, Tensor]:
        """Tensors of the frozen tail, by name (float32)."""
        return self._tensors("tail")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        store, prefix = zarr_store(self.path)
        try:
            with _reading(self.path):
                group = zarr.open_group(store, mode="r", path=f"{prefix}/{name}".lstrip("/"))
                return {key: torch.from_numpy(np.asarray(group[key][...])) for key in self._arrays(name)}  # type: ignore[index]
        except FileNotFoundError as error:
            raise KeyError(f"{name} is missing") from error

    def _arrays(self, group: str) -> list[str]:
        """Name the arrays of a group: a server need not be able to list them."""
        parts = [name.split("/") for name in self.core.names()]
        return [part[1] for part in parts if len(part) == 3 and part[0] == group and part[2] == ROOT]

    def shard_path(self, shard: int) -> Location:
        """File of a shard."""
        return shard_path(self.path, self.manifest.fields["tap"], shard)

    def open_shard(self, shard: int, *, direct: bool = False) -> Blob:
        """Open a shard's bytes.

        Args:
            shard: its number.
            direct: past the page cache, where the file system can.

        Raises:
            FileNotFoundError: if it is not there.
        """
        path = self.shard_path(shard)
        if direct and isinstance(path, Path):
            try:
                return DirectBlob(path)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return open_blob(path)


def sizes(files: Sequence[Location]) -> list[int]:
    """Bytes of each file, 0 where there is none; many are asked for at once."""

    def size(file: Location) -> int:
        try:
            return file_size(file)
        except FileNotFoundError:
            return 0

    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(size, files))


Place = TypeVar("Place", Path, RemotePath, Location)


def receipts_of(store: Place) -> Place:
    """Folder of the receipts beside a store."""
    return store.with_name(store.name + ".receipts")


def receipt_path(store: Place, shard: int) -> Place:
    """File of a shard's receipt."""
    return receipts_of(store) / f"{shard:06d}.json"


def shard_path(store: Place, tap: str, shard: int) -> Place:
    """File of a shard below a store: Zarr's default chunk keys with ``.`` between the numbers."""
    return store / "activations" / tap / f"c.{shard}.0.0.0"


def open_cache(path: str | Location, *, incomplete: bool = False) -> ActivationCache:
    """Open a cache.

    Args:
        path: the ``.zarr`` folder: a path, or a URL (``s3://bucket/x.zarr``, ``https://host/x.zarr``, ...).
        incomplete: open it even if its extraction has not finished.

    Raises:
        UserError: if there is none, it is not a cache, it is not complete, or its server fails.
    """
    path = locate(path)
    try:
        (path / ROOT).read_bytes()
    except OSError as error:
        raise UserError(f"there is no cache at {str(path)!r}: make one with losa-cache extract.") from error
    store, prefix = zarr_store(path)
    try:
        with _reading(path):
            group = zarr.open_group(store, mode="r", path=prefix)
            manifest = Manifest.from_attributes(dict(group.attrs), str(path))
            activations = group[f"activations/{manifest.fields['tap']}"]
            labels = np.asarray(group["labels"][...])  # type: ignore[index]
            ids = unpack_ids(np.asarray(group["sample_ids"][...]))  # type: ignore[index]
        if len(labels) % manifest.views:
            raise ValueError(f"{len(labels)} rows are not samples of {manifest.views} views")
    except (KeyError, ValueError, json.JSONDecodeError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read as a cache ({type(error).__name__}: {error}): if it was one, {REPAIR}."
        ) from error
    if not manifest.complete and not incomplete:
        raise UserError(f"cache {str(path)!r} is incomplete: run the same losa-cache extract again to finish it.")
    assert isinstance(activations, zarr.Array)
    assert activations.shards is not None
    rows, layers, tokens, columns = activations.shape
    layout = Layout(
        rows,
        layers,
        tokens,
        columns,
        itemsize=activations.dtype.itemsize,
        chunk_layers=activations.chunks[1],
        shard_samples=activations.shards[0],
        compressed=any(isinstance(codec, BloscCodec) for codec in activations.compressors),
    )
    return ActivationCache(path, manifest, layout, labels.astype(np.int64), ids)


def _reading(path: Location) -> AbstractContextManager[None]:
    return reaching(path, "read") if isinstance(path, RemotePath) else nullcontext()


def latest_training_cache() -> ActivationCache:
    """Open the most recently completed cache that is not of a held-out split.

    Raises:
        UserError: if this user has none.
    """
    for path in known_stores():
        try:
            cache = open_cache(path, incomplete=True)
        except UserError:  # altered or of another protocol since: naming it in --cache says why
            continue
        if cache.manifest.complete and cache.manifest.fields["dataset"]["split"] not in HELD_OUT_SPLITS:
            return cache
    raise UserError("there is no complete training cache yet: make one with losa-cache extract, or pass --cache.")
