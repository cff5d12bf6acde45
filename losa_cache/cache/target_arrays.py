"""Target sets as arrays of a cache (``docs/protocol.md``, section "Arrays")."""

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from losa_cache.targets.target_set import TargetSet

TARGETS = "targets"
"""The group that holds them."""
CHUNK_BYTES = 64 * 1024 * 1024  # of values: masks of a large set are not one file


def place_of(name: str) -> str:
    """Give the path of a target set's array below the store."""
    return f"{TARGETS}/{name}"


def put_targets(group: zarr.Group, targets: TargetSet) -> None:
    """Write a target set into the group of a cache; one of the same name is replaced."""
    folder = group.require_group(TARGETS)
    values = np.ascontiguousarray(targets.values)
    per_chunk = max(1, CHUNK_BYTES // max(1, values[:1].nbytes))
    folder.create_array(
        targets.name,
        data=values,
        chunks=(min(per_chunk, len(values)), *values.shape[1:]),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        overwrite=True,
    )


def remove_array(group: zarr.Group, name: str) -> None:
    """Remove a target set from the group of a cache, and with the last one the group of target sets."""
    del group[place_of(name)]
    folder = group[TARGETS]
    if not list(folder.keys()):  # type: ignore[union-attr]
        del group[TARGETS]
