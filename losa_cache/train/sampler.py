"""Pure decisions on what is read: the held-out part and the order of every epoch."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError


def epoch_order(rows: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle rows for an epoch (from 0). The order depends on seed and epoch only."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def hold_out(
    rows: NDArray[np.int64], ids: Sequence[str], fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into a training and a held-out part by a hash of the sample ids.

    The same sample falls on the same side whatever the order or the seed of the cache.

    Args:
        rows: to split.
        ids: of all rows of the cache.
        fraction: held out, 0 <= fraction < 1.

    Raises:
        UserError: for another fraction, or one that leaves a side empty.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"val-fraction is {fraction}: it must be at least 0 and below 1.")
    count = round(len(rows) * fraction)
    if count == len(rows) or (fraction > 0 and count == 0):
        raise UserError(f"val-fraction {fraction} of {len(rows)} samples leaves one side empty: choose another.")

    def key(row: int) -> bytes:
        return hashlib.sha256(ids[row].encode("utf-8", "surrogateescape")).digest()

    by_hash = sorted(rows.tolist(), key=key)
    held = np.sort(np.array(by_hash[:count], dtype=np.int64))
    return np.setdiff1d(rows, held), held
