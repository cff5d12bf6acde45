"""Build the Zarr group of a cache without its shards (``docs/protocol.md``, section "Arrays")."""

from collections.abc import Mapping
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


def build_metadata(
    folder: Path,
    manifest: Manifest,
    layout: Layout,
    *,
    labels: NDArray[np.int64],
    ids: list[str],
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
    _put(group, "sample_ids", pack_ids(ids))
    for name, tensors in (("tail", tail), ("scales", scales)):
        inner = group.create_group(name)
        for key, tensor in tensors.items():
            _put(inner, key, tensor.cpu().numpy())


def pack_ids(ids: list[str]) -> NDArray[np.uint8]:
    """Pack strings as rows of UTF-8 bytes, padded with zeros: every Zarr v3 reader has this type.

    File names need not be UTF-8: their bytes come back as they were.
    """
    encoded = [text.encode("utf-8", "surrogateescape") for text in ids]
    longest = max(map(len, encoded))
    return np.frombuffer(b"".join(e.ljust(longest, b"\0") for e in encoded), dtype=np.uint8).reshape(len(ids), -1)


def unpack_ids(packed: NDArray[np.uint8]) -> list[str]:
    """Give the strings of :func:`pack_ids`."""
    texts = np.ascontiguousarray(packed).view(f"S{packed.shape[1]}")[:, 0]  # numpy leaves zeros at the end out, too
    return [text.decode("utf-8", "surrogateescape") for text in texts.tolist()]


def _put(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    codecs = [ZstdCodec(level=3), Crc32cCodec()]
    with zarr.config.set({"array.write_empty_chunks": True}):  # all zeros is something else than missing
        group.create_array(name, data=np.ascontiguousarray(values), compressors=codecs)
