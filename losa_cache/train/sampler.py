"""Pure decisions on what is read: the held-out part, the order of every epoch, the view of every sample."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.train.batch import Request

_VIEWS = 0x76696577  # a stream of random numbers of its own


def epoch_order(samples: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle samples for an epoch (from 0). The order depends on seed and epoch only."""
    return np.random.default_rng((seed, epoch)).permutation(samples)


def requests_in_order(samples: NDArray[np.int64], batch_size: int, *, clips: int = 1) -> list[Request]:
    """Cut samples into batches of plain images, in their order; of videos, each batch comes once for every clip."""
    cuts = [samples[at : at + batch_size] for at in range(0, len(samples), batch_size)]
    return [Request(cut, view=clip) for cut in cuts for clip in range(clips)]


def epoch_requests(samples: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int) -> list[Request]:
    """Plan the batches of an epoch (from 0)."""
    plain = requests_in_order(epoch_order(samples, seed=seed, epoch=epoch), batch_size)
    first = epoch * len(plain)
    return [replace(request, epoch=epoch, step=first + at) for at, request in enumerate(plain)]


def view_starts(samples: int, *, views: int, seed: int) -> NDArray[np.int64]:
    """Draw the view that each sample of a cache shows in epoch 0."""
    return np.random.default_rng((seed, _VIEWS)).integers(views, size=samples)


def rows_of(request: Request, starts: NDArray[np.int64], *, views: int) -> NDArray[np.int64]:
    """Choose one view of each sample of a request, as rows of a cache.

    Every sample goes round its views, one an epoch: after V epochs it has shown them all. Without an epoch the request
    names the view: 0 of plain images, any of the clips of videos.

    Args:
        request: the batch.
        starts: from :func:`view_starts`.
        views: rows a sample.
    """
    if request.epoch is None:
        return request.samples * views + request.view
    return request.samples * views + (starts[request.samples] + request.epoch) % views


def rows_of_samples(samples: NDArray[np.int64], *, views: int) -> NDArray[np.int64]:
    """List the rows of samples, with all their views, in the order of the cache."""
    rows: NDArray[np.int64] = (np.sort(samples)[:, None] * views + np.arange(views)).reshape(-1)
    return rows


def hold_out(
    samples: NDArray[np.int64], ids: Sequence[str], fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples into a training and a held-out part by a hash of the sample ids.

    The same sample falls on the same side whatever the order or the seed of the cache.

    Args:
        samples: their numbers.
        ids: of all samples.
        fraction: held out, 0 <= fraction < 1.

    Raises:
        UserError: for another fraction, or one that leaves a side empty.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"val-fraction is {fraction}: it must be at least 0 and below 1.")
    count = round(len(samples) * fraction)
    if count == len(samples) or (fraction > 0 and count == 0):
        raise UserError(f"val-fraction {fraction} of {len(samples)} samples leaves one side empty: choose another.")

    def key(sample: int) -> bytes:
        return hashlib.sha256(ids[sample].encode("utf-8", "surrogateescape")).digest()

    by_hash = sorted(samples.tolist(), key=key)
    held = np.sort(np.array(by_hash[:count], dtype=np.int64))
    return np.setdiff1d(samples, held), held
