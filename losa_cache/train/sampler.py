"""Pure decisions on what is read: the held-out part, the order and repeats of every epoch, the view of every sample."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.ids import Ids
from losa_cache.train.batch import Request

_VIEWS = 0x76696577  # a stream of random numbers of its own
HASHED_AT_ONCE = 2048  # ids: what lies between them and their digests fits a core's cache


@dataclass(frozen=True)
class Weights:
    """Relative frequencies of training samples.

    Attributes:
        values: float64 ``(N,)``, 0 ... 1, one for each sample, in their order; at least one is above 0.
        labels: int64 ``(N,)``; the number of draws of every class follows the weights of its samples, within one draw.
    """

    values: NDArray[np.float64]
    labels: NDArray[np.int64]


def epoch_order(
    samples: NDArray[np.int64], *, seed: int, epoch: int, weights: Weights | None = None
) -> NDArray[np.int64]:
    """Order an epoch (from 0) of ``len(samples)`` draws. The order depends on seed and epoch only.

    Without weights every sample comes once. With weights the expected number of draws of a sample is ``len(samples)``
    times its share of their sum, as with torch's WeightedRandomSampler. But the actual number is the expected one,
    rounded down or up: no sample is repeated without need, and equal weights give every sample once. This is systematic
    sampling (Madow 1949), in random order within each class.
    """
    rng = np.random.default_rng((seed, epoch))
    if weights is None:
        return rng.permutation(samples)
    lined_up = rng.permutation(np.flatnonzero(weights.values))
    lined_up = lined_up[np.argsort(weights.labels[lined_up], kind="stable")]
    ends = np.cumsum(weights.values[lined_up])
    points = (rng.random() + np.arange(len(samples))) / len(samples) * ends[-1]
    # without the last end, which rounding may put below the last point
    drawn = lined_up[np.searchsorted(ends[:-1], points, side="right")]
    return rng.permutation(samples[drawn])


def count_repeats(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count for each position of an order how often its sample came before."""
    by_sample = np.argsort(order, kind="stable")
    sorted_ = order[by_sample]
    repeats = np.empty_like(order)
    repeats[by_sample] = np.arange(len(order)) - np.searchsorted(sorted_, sorted_)
    return repeats


def requests_in_order(samples: NDArray[np.int64], batch_size: int, *, clips: int = 1) -> list[Request]:
    """Split samples into batches of plain images, in their order; for videos, each batch comes once for every clip."""
    cuts = [samples[at : at + batch_size] for at in range(0, len(samples), batch_size)]
    return [Request(cut, view=clip) for cut in cuts for clip in range(clips)]


def epoch_requests(
    samples: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int, weights: Weights | None = None
) -> list[Request]:
    """Plan the batches of an epoch (from 0)."""
    order = epoch_order(samples, seed=seed, epoch=epoch, weights=weights)
    whole = Request(order, epoch, repeats=None if weights is None else count_repeats(order))
    cuts = [whole.part(at, at + batch_size) for at in range(0, len(order), batch_size)]
    return [replace(request, step=epoch * len(cuts) + at) for at, request in enumerate(cuts)]


def view_starts(samples: int, *, views: int, seed: int) -> NDArray[np.int64]:
    """Draw the view that each sample of a cache shows in epoch 0; where each has one view, this takes no memory."""
    if views == 1:
        return np.broadcast_to(np.int64(0), samples)
    return np.random.default_rng((seed, _VIEWS)).integers(views, size=samples)


def rows_of(request: Request, starts: NDArray[np.int64], *, views: int) -> NDArray[np.int64]:
    """Choose one view of each sample of a request, as rows of a cache.

    Every sample shows its views in turn, one in an epoch, so after V epochs it has shown all. If an epoch draws it
    again, it shows the next view. Without an epoch the request names the view: 0 for plain images, any clip for videos.

    Args:
        request: the batch.
        starts: from :func:`view_starts`.
        views: rows for each sample.
    """
    if request.epoch is None:
        return request.samples * views + request.view
    turns = starts[request.samples] + request.epoch
    if request.repeats is not None:
        turns += request.repeats
    return request.samples * views + turns % views


def rows_of_samples(samples: NDArray[np.int64], *, views: int) -> NDArray[np.int64]:
    """List the rows of samples, with all their views, in the order of the cache."""
    rows: NDArray[np.int64] = (np.sort(samples)[:, None] * views + np.arange(views)).reshape(-1)
    return rows


def hold_out(
    samples: NDArray[np.int64], ids: Sequence[str], fraction: float, fold: int = 0, *, what: str = "samples"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples into a training and a held-out part by a hash of the sample ids.

    The same sample falls on the same side whatever the order or the seed of the cache.

    Args:
        samples: numbers of the samples.
        ids: ids of all samples.
        fraction: held-out share, 0 <= fraction < 1.
        fold: which part in the order of the hashes is held out, from 0; different parts share no sample.
        what: what they are, for messages.

    Raises:
        UserError: for another fraction, or one that leaves a part empty.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"val-fraction is {fraction}: it must be at least 0 and below 1.")
    count = round(len(samples) * fraction)
    if count == len(samples) or (fraction > 0 and count == 0):
        raise UserError(
            f"val-fraction {fraction} of {len(samples)} {what} leaves none to train on or none to validate on: "
            "choose another."
        )
    chosen = _first_by_hash(samples, ids, round(len(samples) * fraction * (fold + 1)))
    if fold:
        chosen &= ~_first_by_hash(samples, ids, round(len(samples) * fraction * fold))
    return np.sort(samples[~chosen]), np.sort(samples[chosen])


def hold_out_ids(
    samples: NDArray[np.int64], ids: Sequence[str], wanted: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples into a training part and a held-out part, which has the given ids.

    Args:
        samples: their numbers.
        ids: of all samples; of those beyond ``samples``, which were skipped, too.
        wanted: ids to hold out.

    Raises:
        UserError: for an id that is not among ``ids``, or if a part is empty.
    """
    _require_known(wanted, ids, "val-ids names")
    chosen = set(wanted)
    of_these = np.fromiter((own in chosen for own in Ids.of(ids).take(samples)), dtype=bool, count=len(samples))
    train, held = samples[~of_these], samples[of_these]
    if not (len(train) and len(held)):
        raise UserError(f"val-ids holds out {len(held)} of {len(samples)} samples: hold some out and leave some.")
    return train, held


def first_by_hash(samples: NDArray[np.int64], ids: Sequence[str], count: int | None) -> NDArray[np.int64]:
    """Keep so many samples (all: ``None``) by a hash of their ids, in ascending order.

    The same samples are kept whatever the order or the seed of the cache, and a larger number contains those of a
    smaller.
    """
    return np.sort(samples if count is None else samples[_first_by_hash(samples, ids, count)])


def _first_by_hash(samples: NDArray[np.int64], ids: Sequence[str], count: int) -> NDArray[np.bool_]:
    """Mark so many samples, the first in the order of the sha256 of their ids; equal ids stay in the given order."""
    if not 0 < count < len(samples):
        return np.full(len(samples), count > 0)
    ids = Ids.of(ids)
    parts = (ids.take(samples[at : at + HASHED_AT_ONCE]) for at in range(0, len(samples), HASHED_AT_ONCE))
    beginnings = np.concatenate([_beginnings(part) for part in parts])
    last = np.partition(beginnings, count - 1)[count - 1]
    chosen = beginnings < last
    (doubtful,) = np.nonzero(beginnings == last)  # nearly always one: two digests rarely begin alike
    in_order = sorted(doubtful.tolist(), key=lambda place: _sha256(ids[int(samples[place])]))
    chosen[in_order[: count - int(chosen.sum())]] = True
    return chosen


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _beginnings(ids: Ids) -> NDArray[np.uint64]:
    """Hash ids and give the first 8 bytes of each digest, as numbers of the same order."""
    sha256 = hashlib.sha256  # looked up once: of a million texts every step counts
    digests = [sha256(text).digest() for text in ids.encoded()]
    first: NDArray[np.uint64] = np.frombuffer(b"".join(digests), dtype=">u8")[::4].astype(np.uint64)
    return first


def balanced_weights(labels: NDArray[np.int64]) -> Weights:
    """Weigh training samples so that every class comes equally often: by one over the size of its class."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return Weights(counts.min() / counts[place], labels)


def weights_by_id(
    samples: NDArray[np.int64], ids: Sequence[str], labels: NDArray[np.int64], given: Mapping[str, float]
) -> Weights:
    """Weigh training samples as given.

    Args:
        samples: numbers of the training samples.
        ids: of all samples.
        labels: of the training samples.
        given: a weight by id, finite and at least 0; samples outside of training may lack one.

    Raises:
        UserError: for an id that is not among ``ids``, a training sample without weight, or nothing above 0.
    """
    _require_known(given, ids, "sampling gives weights to")
    of_training = Ids.of(ids).take(samples)
    if missing := [sample_id for sample_id in of_training if sample_id not in given]:
        raise UserError(
            f"sampling gives no weight to {len(missing)} of the training samples, the first {missing[0]!r}: add a line "
            "for each."
        )
    values = np.fromiter(map(given.__getitem__, of_training), dtype=np.float64, count=len(samples))
    if not values.any():
        raise UserError(f"sampling gives weight 0 to all {len(values)} training samples: raise some.")
    return Weights(values / values.max(), labels)  # their sum cannot overflow


def _require_known(named: Collection[str], ids: Sequence[str], what: str) -> None:
    strange = set(named)
    strange.difference_update(ids)
    if unknown := [sample_id for sample_id in named if sample_id in strange]:
        others = "".join(f", {sample_id!r}" for sample_id in unknown[1:3])
        raise UserError(
            f"{what} ids that are not there ({len(unknown)}, the first {unknown[0]!r}){others}: ids are those in the "
            "cache's sample_ids."
        )
