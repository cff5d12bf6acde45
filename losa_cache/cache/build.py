"""Build the Zarr group of a cache without its shards (``docs/protocol.md``, section "Arrays")."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from losa_cache.cache.compression import LEVEL
from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import get_precision
from losa_cache.ids import Ids


def build_metadata(
    folder: Path,
    manifest: Manifest,
    layout: Layout,
    *,
    labels: NDArray[np.int64],
    ids: Sequence[str],
    tail: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
) -> None:
    """Write a Zarr group with all its arrays but no shards."""
    group = zarr.create_group(LocalStore(folder), zarr_format=3, attributes=manifest.to_attributes())
    precision = get_precision(manifest.precision)
    blosc = BloscCodec(typesize=layout.itemsize, cname="lz4", clevel=LEVEL, shuffle="bitshuffle", blocksize=0)
    group.create_array(
        f"activations/{manifest.fields['tap']}",
        shape=layout.shape,
        dtype=precision.storage,
        chunks=(1, layout.chunk_layers, layout.tokens, layout.columns),
        shards=(layout.shard_samples, layout.layers, layout.tokens, layout.columns),
        filters=None,
        compressors=[blosc, Crc32cCodec()] if layout.compressed else [Crc32cCodec()],
        serializer="auto",
        fill_value=precision.fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("row", "layer", "token", precision.dimension),
        attributes={"dtype": precision.name},
    )
    _put(group, "labels", labels)
    _put(group, "sample_ids", Ids.of(ids).packed)
    for name, tensors in (("tail", tail), ("scales", scales)):
        inner = group.create_group(name)
        for key, tensor in tensors.items():
            _put(inner, key, tensor.cpu().numpy())


def _put(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    codecs = [ZstdCodec(level=3), Crc32cCodec()]
    with zarr.config.set({"array.write_empty_chunks": True}):  # all zeros is something else than missing
        group.create_array(name, data=np.ascontiguousarray(values), compressors=codecs)
