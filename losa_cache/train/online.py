"""Batches from the backbone itself, run anew for every batch: what the cache saves, as the same contract."""

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
    """Decode and augment ahead, run the frozen backbone, hand on its points rounded as a cache would.

    Plain requests give exactly what a cache of the same inputs holds. Epochs are augmented: each image by its id, the
    seed, the epoch and how often the epoch has drawn it before, each batch by the seed and its step.

    Args:
        inputs: backbone, on the training device, and samples.
        points: what of the backbone, in the order of ``Batch.blocks``.
        encoding: of all the points that a cache of these holds, to round to.
        encoded: their names.
        targets: of all samples, ``(N, ...)``; by default their labels.
        workers: that decode.
        augment: timm's name of the augmentation, or ``None``.
        batch_augmentation: of normalised images.
        seed: of the augmentation.
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
        """Say how many seconds the loop waited for decoding and for the backbone."""
        return self._watch.take()

    def bandwidth(self) -> Bandwidth | None:
        """There is none: nothing is read from a cache."""
        return None

    def close(self) -> None:
        """Stop decoding."""
        self._decoder.close()

    def _views(self, request: Request) -> list[View]:
        """Choose what is decoded: of an image itself or the epoch's augmentation, of a video one of its clips."""
        if self._starts is None:
            draws: list[int | None] = [request.epoch] * len(request.samples)
            if request.epoch is not None and request.repeats is not None:  # beyond any epoch's number
                draws = [request.epoch + (repeat << 32) for repeat in request.repeats.tolist()]
            return list(zip(request.samples.tolist(), draws, strict=True))
        rows = rows_of(request, self._starts, views=self._clips)
        return [(int(row) // self._clips, int(row) % self._clips) for row in rows]


@dataclass(frozen=True)
class Rounding:
    """Points of a backbone, rounded as a cache would give them back.

    Attributes:
        encoding: of ``run``.
        run: points to run the backbone for: those that are asked for, and what they are predicted from.
        asked: which of them are, in the order of ``Batch.blocks``.
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
