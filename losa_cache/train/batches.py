"""``batches``: the block outputs of a cache for your own training loop, read as ``train`` reads them."""

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.location import Location
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError, nearest, require_counts, require_seed
from losa_cache.layers import choose_layers
from losa_cache.points import stored_points
from losa_cache.sidenet.operand import dense
from losa_cache.train.batch import Batch, Request, Source
from losa_cache.train.cached import open_cached
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import epoch_requests, hold_out, requests_in_order

SEVERAL = 2  # passes over the samples, or more: then it pays to keep them in memory


@dataclass(frozen=True)
class TensorBatch(Batch):
    """A batch whose blocks are tensors.

    Attributes:
        blocks: for each point a tensor ``(batch, tokens, width)``, in the order of :attr:`Batches.points`, in the dtype
            that the cache's precision decodes to. **They are valid until you request the next batch**, because their
            memory is reused: clone what you keep.
        labels: class numbers, int64 ``(batch,)``, on the same device.
        ids: sample ids.
        fixed: whether the blocks have the same addresses in every batch, as a CUDA graph needs it.
    """

    blocks: list[Tensor]


class Batches:
    """The batches of a cache; :func:`batches` opens them.

    Each iteration is one epoch: it passes once over the training samples, in an order of its own. There is one pass at
        a time: a pass ends when another one begins. Close the object after use, or open it in a ``with`` statement:
        this stops its threads and frees its memory.

    Attributes:
        points: names of the blocks of a batch, in their order: ``block.1`` is the output of the first block.
        samples: numbers of the training samples in the cache, ascending, int64 ``(N,)``.
        held_out_samples: numbers of the samples that ``val_fraction`` holds out.
    """

    def __init__(
        self,
        source: Source,
        *,
        points: list[str],
        samples: NDArray[np.int64],
        held_out: NDArray[np.int64],
        batch_size: int,
        shuffle: bool,
        seed: int,
        clips: int,
    ) -> None:
        self.points, self.samples, self.held_out_samples = points, samples, held_out
        self._batch_size, self._shuffle, self._seed, self._clips = batch_size, shuffle, seed, clips
        self._source = source
        self._reading: Iterator[Batch] | None = None
        self._turn = self._next_epoch = 0
        self._close = weakref.finalize(self, source.close)

    def __len__(self) -> int:
        """Give the number of batches of a pass."""
        return math.ceil(len(self.samples) / self._batch_size) * (1 if self._shuffle else self._clips)

    def __iter__(self) -> Iterator[TensorBatch]:
        """Iterate over the training samples in the order of the next epoch."""
        return self.epoch(self._next_epoch)

    def epoch(self, number: int) -> Iterator[TensorBatch]:
        """Iterate over the training samples in the order of an epoch, counted from 0; the next iteration is the epoch
        after it.

        Raises:
            UserError: for a number below 0, or after :meth:`close`.
        """
        if number < 0:
            raise UserError(f"epoch is {number}: the first one is 0.")
        self._next_epoch = number + 1
        if not self._shuffle:
            return self._in_order(self.samples)
        return self._pass(epoch_requests(self.samples, batch_size=self._batch_size, seed=self._seed, epoch=number))

    def held_out(self) -> Iterator[TensorBatch]:
        """Iterate over the held-out samples without augmentation: plain images in the cache's order, or every clip of
        videos.

        Raises:
            UserError: if none are held out, or after :meth:`close`.
        """
        if not len(self.held_out_samples):
            raise UserError("no samples are held out: pass val_fraction=0.1, for example, to lc.batches.")
        return self._in_order(self.held_out_samples)

    def close(self) -> None:
        """Stop reading. Batches from before are no longer valid."""
        self._turn += 1
        self._reading = None
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_order(self, samples: NDArray[np.int64]) -> Iterator[TensorBatch]:
        return self._pass(requests_in_order(samples, self._batch_size, clips=self._clips))

    def _pass(self, requests: Sequence[Request]) -> Iterator[TensorBatch]:
        if not self._close.alive:
            raise UserError("these batches are closed: open them again with lc.batches.")
        self._turn += 1
        self._reading = None  # waits for what the pass before reads ahead, into the same memory
        self._source.spent()  # nobody asks for these figures: they would add up
        self._reading = self._source.batches(requests)
        return self._each(self._turn, len(requests))

    def _each(self, turn: int, count: int) -> Iterator[TensorBatch]:
        for _ in range(count):
            yield self._following(turn)  # in no variable: a batch's memory is free while the next one is made

    def _following(self, turn: int) -> TensorBatch:
        if turn != self._turn or self._reading is None:
            raise UserError(
                "this pass over the batches ended when another one began, or they were closed: finish a pass first, or "
                "open lc.batches a second time."
            )
        batch = next(self._reading)
        return TensorBatch(dense(batch.blocks), batch.labels, batch.ids, batch.fixed)


def batches(
    cache: str | Location | ActivationCache,
    *,
    batch_size: int = 64,
    layers: str | int | list[int] = "all",
    points: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    val_fraction: float = 0.0,
    shuffle: bool = True,
    seed: int = 0,
    device: str | None = None,
    residency: str = "auto",
) -> Batches:
    """Open a cache's block outputs, labels and ids for a training loop of your own.

    >>> with lc.batches("train.zarr", batch_size=64, val_fraction=0.1) as batches:  # doctest: +SKIP
    ...     for epoch in range(10):
    ...         for batch in batches:
    ...             loss = cross_entropy(model(batch.blocks), batch.labels)
    ...         for batch in batches.held_out():
    ...             ...

    Batches are read as ``losa_cache.train`` reads them, at its speed. With the same ``seed``, ``batch_size`` and
    ``val_fraction`` they hold the same samples in the same order, epoch by epoch; each sample comes once in an epoch,
    and the last batch may be smaller. If a sample has several views, an epoch shows one of them, in turn.

    Args:
        cache: an opened cache, its path or its URL.
        batch_size: samples in a batch.
        layers: the layers of the cache to read, as in ``losa_cache.TrainConfig``. Their points come in the order of the
            trunk; the output of its last block comes last.
        points: names of the points to read, in the order of the blocks, in place of ``layers``: some of
            ``losa_cache.open_cache(path).manifest.points``.
        ids: read only the samples with these ids; by default all samples of the cache.
        val_fraction: share of the samples to hold out, by a hash of their ids, for :meth:`Batches.held_out`.
        shuffle: draw a new order for every epoch. Without it, training samples also come as plain images in the cache's
            order, or as every clip of videos.
        seed: seed of the order, and of the view that each sample shows first.
        device: device of the tensors, ``cpu``, ``cuda`` or ``cuda:1``; by default the GPU if there is one.
        residency: where the activations are kept between epochs: ``device`` (GPU memory), ``memory`` (RAM), ``disk``
            (they are read anew in every epoch), or ``auto``, the fastest of these that holds them. Choose ``disk`` for
            a single pass.

    Raises:
        UserError: for options that cannot work, points or ids that the cache does not hold, and a cache that does not
            open; during iteration, for a damaged chunk, naming the sample.
    """
    require_counts(batch_size=batch_size)
    require_seed(seed)
    if points is not None and layers != "all":
        raise UserError(f"layers is {layers!r}, and points names what is read: leave one of them out.")
    placement = Placement.choose(device, residency)
    opened = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    names = _points(opened, layers) if points is None else _known_points(opened, points)
    train, held_out = hold_out(_samples(opened, ids), opened.sample_ids, val_fraction)
    source = open_cached(
        opened,
        names,
        placement,
        samples=np.concatenate([train, held_out]),
        passes=SEVERAL,
        seed=seed,
        batch_size=batch_size,
    )
    return Batches(
        source,
        points=names,
        samples=train,
        held_out=held_out,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        clips=opened.manifest.clips,
    )


def _points(cache: ActivationCache, layers: str | int | list[int]) -> list[str]:
    manifest = cache.manifest
    chosen = choose_layers(layers, manifest.layers)
    return stored_points(manifest.fields["tap"], chosen, embedding=False, tokens=manifest.holds)


def _known_points(cache: ActivationCache, points: Sequence[str]) -> list[str]:
    stored, names = cache.manifest.points, list(points)
    if unknown := [name for name in names if name not in stored]:
        raise UserError(
            f"cache {str(cache.path)!r} holds no point {unknown[0]!r}{nearest(unknown[0], stored)}. It holds "
            f"{', '.join(stored)}."
        )
    if not names or len(set(names)) < len(names):
        raise UserError(f"points is {names}: name at least one, and each once.")
    return names


def _samples(cache: ActivationCache, ids: Sequence[str] | None) -> NDArray[np.int64]:
    """Find the samples with these ids, ascending."""
    samples = cache.samples
    if ids is not None:
        known, wanted = cache.sample_ids, set(ids)
        samples = samples[[own in wanted for own in known.take(samples)]]
        if missing := wanted.difference(known.take(samples)):
            raise UserError(
                f"cache {str(cache.path)!r} holds no sample {min(missing)!r} ({len(missing)} of {len(wanted)} ids are "
                "not there): ids are those in the cache's sample_ids, but for samples that were skipped."
            )
    if not len(samples):
        raise UserError(f"there are no samples to read from {str(cache.path)!r}: name some ids that it holds.")
    return samples
