"""Batches from the backbone itself, which runs for every batch. The contract is that of a cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.backbone import Backbone
from losa_cache.cache.precision import Encoding
from losa_cache.data.augment import BatchAugmentation
from losa_cache.data.decode import Decoder, View
from losa_cache.inputs import Inputs
from losa_cache.sidenet.operand import Block
from losa_cache.train.batch import Batch, Request
from losa_cache.train.bottleneck import Bandwidth
from losa_cache.train.sampler import rows_of, view_starts
from losa_cache.train.stopwatch import Stopwatch


class OnlineSource:
    """Decode and augment in advance, run the frozen backbone, and give its points, rounded as in a cache.

    Plain requests give exactly what a cache of the same inputs holds. Epochs are augmented: each image by its id, the
    seed, the epoch and how often the epoch has drawn it before, each batch by the seed and its step.

    Args:
        inputs: samples, and the backbone on the training device.
        points: points of the backbone, in the order of ``Batch.blocks``.
        encoding: the encoding of a cache, to whose precision values are rounded.
        encoded: names of the points of that encoding.
        targets: targets of all samples, ``(N, ...)``; by default their labels.
        workers: number of threads or processes that decode.
        augment: timm's name of the augmentation, or ``None``.
        batch_augmentation: augmentation of normalised images.
        seed: seed of the augmentation.
    """

    def __init__(
        self,
        inputs: Inputs,
        points: Sequence[str],
        encoding: Encoding,
        encoded: Sequence[str],
        *,
        targets: NDArray[Any] | None = None,
        workers: int,
        augment: str | None = None,
        batch_augmentation: BatchAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._backbone, self._samples, self._compute = inputs.backbone, inputs.samples, inputs.compute
        self._seed, self._targets = seed, inputs.samples.labels if targets is None else targets
        self._rounding = Rounding.of(encoding.to(inputs.backbone.device), encoded, points)
        self._decoder = Decoder(
            inputs.samples,
            inputs.backbone.input,
            workers=workers,
            augment=augment,
            seed=seed,
            clips=inputs.manifest.clips,
            pin=inputs.backbone.device.type == "cuda",
            turn=inputs.manifest.upright,
        )
        self._clips = inputs.manifest.clips
        video = inputs.samples.clip is not None
        self._starts = view_starts(len(inputs.samples), views=self._clips, seed=seed) if video else None
        self._batch_augmentation = batch_augmentation
        self._watch = Stopwatch(inputs.backbone.device)

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request.

        Raises:
            UserError: for an image that does not decode.
        """
        device = self._backbone.device
        decoded = self._decoder.batches(map(self._views, requests))
        for request, batch in zip(requests, self._watch.waiting("decode", decoded), strict=True):
            batch.require(self._samples, "mend it, or extract a cache with --on-error skip")
            labels = torch.from_numpy(self._targets[request.samples]).to(device)
            with self._watch.computing("backbone"):
                images = self._backbone.input.normalise(batch.pixels.to(device, non_blocking=True))
                if request.epoch is not None and self._batch_augmentation is not None:
                    images, labels = self._batch_augmentation(images, labels, self._seed, request.step)
                blocks = self._rounding.blocks(self._backbone, images, compute=self._compute)
            yield Batch(blocks, labels, [self._samples.ids[s] for s in request.samples])

    def spent(self) -> dict[str, float]:
        """Give the seconds that the loop waited for decoding and for the backbone."""
        return self._watch.take()

    def bandwidth(self) -> Bandwidth | None:
        """Give ``None``: nothing is read from a cache."""
        return None

    def close(self) -> None:
        """Stop decoding."""
        self._decoder.close()

    def _views(self, request: Request) -> list[View]:
        """Choose what is decoded: an image or the epoch's augmentation of it, or a clip of a video."""
        if self._starts is None:
            draws: list[int | None] = [request.epoch] * len(request.samples)
            if request.epoch is not None and request.repeats is not None:  # beyond any epoch's number
                draws = [request.epoch + (repeat << 32) for repeat in request.repeats.tolist()]
            return list(zip(request.samples.tolist(), draws, strict=True))
        rows = rows_of(request, self._starts, views=self._clips)
        return [(int(row) // self._clips, int(row) % self._clips) for row in rows]


@dataclass(frozen=True)
class Rounding:
    """Points of a backbone, rounded as in a cache.

    Attributes:
        encoding: the encoding of the points in ``run``.
        run: points to compute: the requested ones, and those from which they are predicted.
        asked: positions of the requested points, in the order of ``Batch.blocks``.
    """

    encoding: Encoding
    run: list[str]
    asked: list[int]

    @classmethod
    def of(cls, encoding: Encoding, encoded: Sequence[str], points: Sequence[str]) -> "Rounding":
        """Choose what is run; arguments as of :class:`OnlineSource`."""
        needed = encoding.precision.needed([encoded.index(point) for point in points])
        run = [encoded[at] for at in needed]
        return cls(encoding.select(needed), run, [run.index(point) for point in points])

    def blocks(self, backbone: Backbone, images: Tensor, *, compute: torch.dtype) -> list[Block]:
        """Run the frozen backbone on ``images``; arguments as of ``Backbone.run``."""
        taken: list[Tensor] = []  # a cache's points come in its order
        before: Tensor | None = None

        def take(at: int, output: Tensor) -> None:
            nonlocal before
            with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor, which autograd may save
                value, before = self.encoding.round(at, output, before)
            taken.append(value)

        backbone.run(images, self.run, take, compute=compute)
        return [taken[at] for at in self.asked]
