"""A cache, opened: a Zarr v3 group."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from losa_cache.cache.blob import Blob, DirectBlob, FileBlob
from losa_cache.cache.core import Core, unpack_ids
from losa_cache.cache.home import known_stores
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding, Precision, get_precision
from losa_cache.errors import UserError

REPAIR = "losa-cache verify --repair mends it"
HELD_OUT_SPLITS = ("test", "val", "valid", "validation", "val200")


@dataclass(frozen=True)
class ActivationCache:
    """An opened cache: everything but the activations, which :class:`BlockReader` reads.

    Attributes:
        path: the ``.zarr`` folder.
        manifest: its attributes.
        layout: chunks and shards of the activations.
        labels: int64 ``(rows,)``; -1 where the sample was skipped.
        ids: sample ids ``(rows,)``.

    Sample s has the rows ``s * V ... s * V + V - 1``, its V views.
    """

    path: Path
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
    def stored_bytes(self) -> int:
        """Bytes on disk of the whole store."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    @property
    def remote(self) -> bool:
        """Whether it lies on a server."""
        return False

    @property
    def receipts(self) -> Path:
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
            return self.precision.load(self._tensors("scales"))
        except (KeyError, ValueError) as error:
            raise UserError(f"the scales in {str(self.path)!r} cannot be read ({error}): {REPAIR}.") from error

    def tail_tensors(self) -> dict[str, Tensor]:
        """Tensors of the frozen tail, by name (float32)."""
        return self._tensors("tail")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        group = zarr.open_group(LocalStore(self.path, read_only=True), mode="r", path=name)
        return {name: torch.from_numpy(np.asarray(array[...])) for name, array in group.arrays()}

    def shard_path(self, shard: int) -> Path:
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
        if direct:
            try:
                return DirectBlob(self.shard_path(shard))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return FileBlob(self.shard_path(shard))


def receipts_of(store: Path) -> Path:
    """Folder of the receipts beside a store."""
    return store.with_name(store.name + ".receipts")


def receipt_path(store: Path, shard: int) -> Path:
    """File of a shard's receipt."""
    return receipts_of(store) / f"{shard:06d}.json"


def shard_path(store: Path, tap: str, shard: int) -> Path:
    """File of a shard below a store: Zarr's default chunk keys with ``.`` between the numbers."""
    return store / "activations" / tap / f"c.{shard}.0.0.0"


def open_cache(path: str | Path, *, incomplete: bool = False) -> ActivationCache:
    """Open a cache.

    Args:
        path: the ``.zarr`` folder.
        incomplete: open it even if its extraction has not finished.

    Raises:
        UserError: if there is none, it is not a cache, or it is not complete.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise UserError(f"there is no cache at {str(path)!r}: make one with losa-cache extract.")
    try:
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r")
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
