"""Check the arrays of a cache against the protocol, before memory is allocated to read them."""

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from losa_cache.cache.location import sizes
from losa_cache.cache.manifest import MOST_TOLD, Manifest
from losa_cache.cache.schema import precision_of
from losa_cache.cache.storage import StorePath
from losa_cache.errors import UserError
from losa_cache.machine.memory import available_memory
from losa_cache.outside import UnreadableError, require

Shape = tuple[int | None, ...]

CONSTANTS = {
    **dict.fromkeys(("channel", "mean", "spread", "steps", "deviations"), "float32"),
    **dict.fromkeys(("predictor", "axes"), "float16"),
    "bits": "uint8",
}
"""Data types of what a precision stores below ``scales``."""

FREELY = 64 * 1024 * 1024  # bytes that an array may have before its files are looked at
ZSTD_RATIO = 128 * 1024 // 4  # a block of Zstandard gives at most 128 KiB, and takes at least 4 bytes
MOST_CHUNKS = 2**16  # of a small array


def read_array(
    array: zarr.Array[Any], place: StorePath, name: str, *, dtype: str | tuple[str, ...], shape: Shape | None = None
) -> NDArray[Any]:
    """Check what a small array declares, then read it whole.

    Args:
        array: not yet read.
        place: where its files lie.
        name: for messages.
        dtype: required data type, or several of which it must have one.
        shape: required shape, ``None`` for a dimension of any size; by default any shape.

    Raises:
        ValueError: if it declares anything else.
        Exception: whatever Zarr and its codecs raise for damaged chunks.
    """
    check_small(array, name, dtype=dtype, shape=shape)
    check_room(array, name, lambda files: sizes([place / file for file in files]))
    return np.asarray(array[...])


def check_rows(manifest: Manifest, labels: NDArray[np.int64]) -> None:
    """Check that the labels agree with the attributes.

    Raises:
        ValueError: if they do not agree.
    """
    rows, views, classes = len(labels), manifest.views, len(manifest.classes)
    require(rows > 0, "it holds no samples")
    require(rows % views == 0, f"{rows} rows are not samples of {views} views")
    low, high = int(labels.min()), int(labels.max())
    require(low >= -1 and high < classes, f"labels go from {low} to {high}, and there are {classes} classes")
    skipped = np.array(sorted(manifest.skipped_rows), dtype=np.int64)
    require(not len(skipped) or skipped[-1] < rows, f"row {skipped[-1:]} is skipped, of {rows}")
    require(not manifest.complete or bool((labels[skipped] == -1).all()), "a row is skipped that has a label")


def told(error: Exception) -> str:
    """Give an error of Zarr, its codecs or the system in one line."""
    text = " ".join(str(error).split())[:MOST_TOLD]
    return text if text and isinstance(error, ValueError | UnreadableError) else f"{type(error).__name__}: {text}"


def check_activations(array: zarr.Array[Any], manifest: Manifest, rows: int) -> None:
    """Check the array of activations against the protocol, the attributes and the number of labels.

    Args:
        array: not yet read.
        manifest: the attributes.
        rows: number of labels.

    Raises:
        ValueError: if it does not agree.
    """
    precision = precision_of(manifest.precision)
    require(len(array.shape) == 4 and array.shape[0] == rows, f"activations of {array.shape} are not of {rows} rows")
    require(array.dtype == precision.storage, f"activations are {array.dtype}, {precision.name} is {precision.storage}")
    require(array.attrs.get("dtype") == precision.name, f"activations are {array.attrs.get('dtype')!r}")
    _, planes, tokens, columns = array.shape
    points, whole, width = manifest.shape
    try:
        stored = precision.row(points, whole, width)
    except UserError as error:  # groups of channels that do not divide the width
        raise ValueError(str(error)) from error
    agrees = (planes, tokens) == (1, 1) if stored is None else (planes, tokens, columns) == stored
    require(agrees, f"rows of {array.shape[1:]} are not {points} points of {whole} x {width} values")
    shard, chunk = array.shards, array.chunks
    require(shard is not None and shard[1:] == array.shape[1:], f"shards {shard} do not hold whole rows")
    assert shard is not None
    require(1 <= shard[0] <= max(rows, 1), f"shards are of {shard[0]} rows, of {rows}")
    require(
        chunk[0] == 1 and chunk[2:] == array.shape[2:] and planes % chunk[1] == 0,
        f"chunks {chunk} do not hold whole planes of a row",
    )
    (sharding,) = array.metadata.codecs  # type: ignore[union-attr]
    assert isinstance(sharding, ShardingCodec)
    inner = [type(codec) for codec in sharding.codecs]
    require(
        inner in ([BytesCodec, Crc32cCodec], [BytesCodec, BloscCodec, Crc32cCodec]),
        f"chunks are stored by {', '.join(kind.__name__ for kind in inner)}",
    )


def check_small(array: zarr.Array[Any], name: str, *, dtype: str | tuple[str, ...], shape: Shape | None) -> None:
    """Check a small array against the protocol, before it is read.

    Args:
        array: not yet read.
        name: for messages.
        dtype, shape: as of :func:`read_array`.

    Raises:
        ValueError: if it does not agree.
    """
    known = (dtype,) if isinstance(dtype, str) else dtype
    require(str(array.dtype) in known, f"{name} is {array.dtype}, not {' or '.join(known)}")
    agrees = shape is None or (
        len(array.shape) == len(shape)
        and all(wanted in (None, own) for own, wanted in zip(array.shape, shape, strict=True))
    )
    require(agrees, f"{name} is of shape {array.shape}")
    kinds = [type(codec) for codec in array.metadata.codecs]  # type: ignore[union-attr]
    require(kinds == [BytesCodec, ZstdCodec, Crc32cCodec], f"{name} is not stored by bytes, zstd and crc32c")


def check_room(array: zarr.Array[Any], name: str, bytes_of: Callable[[Sequence[str]], Sequence[int]]) -> None:
    """Refuse an array that declares more than its files can hold, or more than fits in memory, before it is read.

    Args:
        array: as :func:`check_small` accepts it.
        name: for messages.
        bytes_of: gives the bytes of files, by their names below the array.

    Raises:
        ValueError: if it does.
    """
    declared = prod(array.shape) * array.dtype.itemsize
    chunk = prod(array.chunks) * array.dtype.itemsize
    grid = [-(-whole // part) for whole, part in zip(array.shape, array.chunks, strict=True)]
    require(prod(grid) <= MOST_CHUNKS, f"{name} is of shape {array.shape}, in {prod(grid)} chunks")
    require(chunk <= max(declared, FREELY), f"{name} is of shape {array.shape}, its chunks of {array.chunks}")
    if declared <= FREELY:
        return
    files = [array.metadata.encode_chunk_key(at) for at in product(*map(range, grid))]
    stored = sum(bytes_of(files))
    require(declared <= stored * ZSTD_RATIO, f"{name} is of shape {array.shape}, which {stored} bytes cannot hold")
    free = available_memory(torch.device("cpu"))
    require(declared <= free, f"{name} takes {declared / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free")
