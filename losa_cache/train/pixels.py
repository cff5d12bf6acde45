"""Batches of images, for what runs the backbone on them. The contract is that of a cache."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from losa_cache.data.augment import BatchAugmentation
from losa_cache.data.decode import Decoder, View
from losa_cache.inputs import Inputs
from losa_cache.train.batch import Batch, Request
from losa_cache.train.bottleneck import Bandwidth
from losa_cache.train.sampler import rows_of, view_starts
from losa_cache.train.stopwatch import Stopwatch


class PixelSource:
    """Decode and augment in advance, and give normalised images on the device of the backbone.

    ``Batch.blocks`` is one tensor, float32 ``(batch, *input.shape)``. Plain requests give images as they are. Epochs
    are augmented: each image by its id, the seed, the epoch and how often the epoch has drawn it before, each batch by
    the seed and its step.

    Args:
        inputs: samples, and the backbone on the training device.
        targets: targets of all samples, ``(N, ...)``; by default their labels.
        workers: number of threads or processes that decode.
        augment: timm's name of the augmentation, or ``None``.
        batch_augmentation: augmentation of normalised images.
        seed: seed of the augmentation.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        targets: NDArray[Any] | None = None,
        workers: int,
        augment: str | None = None,
        batch_augmentation: BatchAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._input, self._device, self._samples = inputs.backbone.input, inputs.backbone.device, inputs.samples
        self._seed, self._targets = seed, inputs.samples.labels if targets is None else targets
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
        decoded = self._decoder.batches(map(self._views, requests))
        for request, batch in zip(requests, self._watch.waiting("decode", decoded), strict=True):
            batch.require(self._samples, "mend it, or extract a cache with --on-error skip")
            labels = torch.from_numpy(self._targets[request.samples]).to(self._device)
            with self._watch.computing("decode"):
                images = self._input.normalise(batch.pixels.to(self._device, non_blocking=True))
                if request.epoch is not None and self._batch_augmentation is not None:
                    images, labels = self._batch_augmentation(images, labels, self._seed, request.step)
            yield Batch([images], labels, [self._samples.ids[s] for s in request.samples])

    def spent(self) -> dict[str, float]:
        """Give the seconds that the loop waited for images, decoded, normalised and augmented."""
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
