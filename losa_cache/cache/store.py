"""A cache as a Zarr v3 group: created through zarr-python, opened by anyone."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from losa_cache.cache.files import publish, sync_folder, sync_tree
from losa_cache.cache.home import known_stores
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Precision, get_precision
from losa_cache.errors import UserError

HELD_OUT_SPLITS = ("test", "val", "valid", "validation")


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

    def tail_tensors(self) -> dict[str, Tensor]:
        """Tensors of the frozen tail, by name (float32)."""
        group = zarr.open_group(LocalStore(self.path, read_only=True), mode="r", path="tail")
        return {name: torch.from_numpy(np.asarray(array[...])) for name, array in group.arrays()}

    def shard_path(self, shard: int) -> Path:
        """File of a shard."""
        return shard_path(self.path, self.manifest.fields["tap"], shard)


def shard_path(store: Path, tap: str, shard: int) -> Path:
    """File of a shard below a store: Zarr's default chunk keys with ``.`` between the numbers."""
    return store / "activations" / tap / f"c.{shard}.0.0.0"


def create_store(
    path: Path,
    manifest: Manifest,
    layout: Layout,
    *,
    labels: NDArray[np.int64],
    ids: list[str],
    tail: Mapping[str, Tensor],
) -> None:
    """Create a store without its shards: built under a temporary name, renamed when whole."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(LocalStore(partial), zarr_format=3, attributes=manifest.to_attributes())
    precision = get_precision(manifest.precision)
    group.create_array(
        f"activations/{manifest.fields['tap']}",
        shape=layout.shape,
        dtype=precision.storage,
        chunks=(1, layout.chunk_layers, layout.tokens, layout.width),
        shards=(layout.shard_samples, layout.layers, layout.tokens, layout.width),
        filters=None,
        compressors=[Crc32cCodec()],
        serializer="auto",
        fill_value=precision.fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("row", "layer", "token", "channel"),
        attributes={"dtype": precision.name},
    )
    _put(group, "labels", labels)
    _put(group, "sample_ids", _pack(ids))
    frozen = group.create_group("tail")
    for name, tensor in tail.items():
        _put(frozen, name, tensor.numpy())
    sync_tree(partial)
    publish(partial, path)


def finish_store(path: Path, manifest: Manifest, labels: NDArray[np.int64]) -> None:
    """Write the final labels, then mark the store complete: its last step."""
    group = zarr.open_group(LocalStore(path), mode="r+")
    group["labels"][...] = labels  # type: ignore[index]
    sync_tree(path / "labels")
    group.attrs.put(manifest.to_attributes())
    with open(path / "zarr.json", "rb") as file:
        os.fsync(file.fileno())
    sync_folder(path)


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
        ids = _unpack(np.asarray(group["sample_ids"][...]))  # type: ignore[index]
        if len(labels) % manifest.views:
            raise ValueError(f"{len(labels)} rows are not samples of {manifest.views} views")
    except (KeyError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a cache ({type(error).__name__}: {error}).") from error
    if not manifest.complete and not incomplete:
        raise UserError(f"cache {str(path)!r} is incomplete: run the same losa-cache extract again to finish it.")
    assert isinstance(activations, zarr.Array)
    assert activations.shards is not None
    samples, layers, tokens, width = activations.shape
    layout = Layout(
        samples, layers, tokens, width, activations.dtype.itemsize, activations.chunks[1], activations.shards[0]
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


def _put(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    group.create_array(name, data=np.ascontiguousarray(values), compressors=[ZstdCodec(level=3), Crc32cCodec()])


def _pack(ids: list[str]) -> NDArray[np.uint8]:
    """Pack strings as rows of UTF-8 bytes, zero-padded: a type that every Zarr v3 reader has.

    File names need not be UTF-8: their bytes come back as they were.
    """
    encoded = [text.encode("utf-8", "surrogateescape") for text in ids]
    longest = max(map(len, encoded))
    return np.frombuffer(b"".join(e.ljust(longest, b"\0") for e in encoded), dtype=np.uint8).reshape(len(ids), -1)


def _unpack(packed: NDArray[np.uint8]) -> list[str]:
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape") for row in packed]
