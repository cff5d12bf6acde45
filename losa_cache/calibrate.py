"""Points of a few images, unencoded: a calibration sample to fit an encoding to, or a second look at a cache."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losa_cache.cache import compression
from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import EncodedBatch, Encoding, Precision, get_precision
from losa_cache.data.decode import Decoded, View
from losa_cache.errors import UserError
from losa_cache.inputs import Inputs

AT_ONCE = 32  # images
AT_ONCE_BYTES = 512 * 1024 * 1024
THIN_BYTES = 2 * 1024**3
THINNING = 4  # one token in so many is kept of larger samples: images differ more than their tokens
SHARE = 4  # of a data set, one image in so many may be run for calibration alone
COMPRESSED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Calibration:
    """Points of the first images: samples are in random order, so these are a random choice.

    Attributes:
        whole: float32 ``(images, tokens, width)`` a point, on the backbone's device: 32 images, or as many as 512 MiB
            hold.
        thin: bfloat16 ``(more images, prefix tokens and a random quarter of the others, width)``, where a precision
            asks for more: as many as 2 GiB hold, and at most a quarter of the data set. Else ``whole``.
        tokens, prefix: of the backbone.
    """

    whole: list[Tensor]
    thin: list[Tensor]
    tokens: int
    prefix: int

    def fit(self, precision: Precision) -> Encoding:
        """Fit a precision to as many images as it asks for, and there are.

        Raises:
            UserError: if it cannot store this width.
        """
        blocks = self.thin if precision.images > AT_ONCE else self.whole
        if blocks:
            precision.require(blocks[0].shape[-1])
        return precision.fit(blocks, tokens=self.tokens, prefix=self.prefix)


def fit_encoding(inputs: Inputs, *, workers: int) -> Encoding:
    """Fit the precision of ``inputs`` to its first images; where there is nothing to fit, nothing is computed.

    Raises:
        UserError: if none of the images decodes.
    """
    precision = get_precision(inputs.manifest.precision)
    if precision.images:
        return calibrate(inputs, workers=workers, images=precision.images).fit(precision)
    return Calibration([], [], inputs.backbone.tokens, inputs.backbone.prefix_tokens).fit(precision)


def calibrate(inputs: Inputs, *, workers: int, images: int) -> Calibration:
    """Run the backbone over the first images.

    Args:
        inputs: what is to be extracted.
        workers: decoding threads.
        images: how many a precision asks for.

    Raises:
        UserError: if none of them decodes.
    """
    at_once, count = images_at_once(inputs), calibration_images(inputs, images)
    plan: list[list[View]] = [
        [(index, None) for index in range(at, min(at + at_once, count))] for at in range(0, count, at_once)
    ]
    failed: dict[int, tuple[int, str]] = {}

    def decoded() -> Iterator[list[Tensor]]:
        for views, (batch, blocks) in zip(plan, run_views(inputs, plan, workers=workers), strict=True):
            failed.update(batch.failures)
            if good := [place for place in range(len(views)) if place not in batch.failures]:
                yield [block[good] for block in blocks]

    sample = collect(decoded(), tokens=inputs.backbone.tokens, prefix=inputs.backbone.prefix_tokens, images=images)
    if not sample.whole:
        index, reason = failed[0]
        raise UserError(
            f"none of the {count} images could be decoded (first: {inputs.samples.ids[index]!r}, {reason})."
        )
    return sample


def collect(parts: Iterable[list[Tensor]], *, tokens: int, prefix: int, images: int) -> Calibration:
    """Make a calibration sample of points.

    Args:
        parts: of a few images at a time float32 ``(images, tokens, width)`` a point.
        tokens, prefix: of a point.
        images: how many a precision asks for.

    Returns:
        the sample; without points if there are no parts.
    """
    generator = torch.Generator().manual_seed(0)
    whole: list[Tensor] = []
    thin: list[list[Tensor]] = []
    for blocks in parts:
        whole = whole or blocks
        kept = thinned(blocks[0].shape[1], prefix, generator)
        thin.append([block[:, kept].bfloat16() for block in blocks])
    joined = [torch.cat(own) for own in zip(*thin, strict=True)] if images > AT_ONCE else whole
    return Calibration(whole, joined, tokens, prefix)


def thinned(tokens: int, prefix: int, generator: torch.Generator) -> list[int]:
    """Choose the tokens that a thin sample keeps of an image: prefix tokens, and a random quarter of the others."""
    patches = torch.randperm(tokens - prefix, generator=generator) + prefix
    return [*range(prefix), *patches[: max(1, len(patches) // THINNING)].tolist()]


def calibration_images(inputs: Inputs, images: int) -> int:
    """Say how many images are run for a calibration sample that should hold so many."""
    return images_of(_values(inputs), len(inputs.samples), images)


def images_of(values: int, total: int, images: int) -> int:
    """Say how many of ``total`` images, of so many values each, a calibration sample of ``images`` takes."""
    kept = THIN_BYTES * THINNING // (values * torch.bfloat16.itemsize)
    return min(total, max(fitting(values), min(images, kept, total // SHARE)))


def images_at_once(inputs: Inputs) -> int:
    """Say how many images' points fit 512 MiB as float32: at least 1, at most 32."""
    return fitting(_values(inputs))


def fitting(values: int) -> int:
    """Say how many images of so many values are run at once: at least 1, at most 32."""
    return min(AT_ONCE, max(1, AT_ONCE_BYTES // (values * torch.float32.itemsize)))


def _values(inputs: Inputs) -> int:
    return len(inputs.manifest.points) * inputs.backbone.trunk_tokens * inputs.backbone.width


def run_views(
    inputs: Inputs, plan: Iterable[list[View]], *, workers: int
) -> Generator[tuple[Decoded, list[Tensor]], None, None]:
    """Run the backbone over batches of views: the pixels, and float32 ``(batch, tokens, width)`` a point, unencoded."""
    backbone, decoder = inputs.backbone, inputs.decoder(workers)
    try:
        for batch in decoder.batches(plan):
            pixels = batch.pixels.to(backbone.device)
            blocks = backbone.outputs(pixels, inputs.manifest.points, compute=inputs.compute)
            yield batch, [block.float() for block in blocks]
    finally:
        decoder.close()


def compression_ratio(encoding: Encoding, blocks: Sequence[Tensor], layout: Layout) -> float | None:
    """Measure what compression makes of a calibration sample: ``None`` where it does not pay, or the cache is small.

    Args:
        encoding: that the blocks are stored in.
        blocks: whole ones of a calibration sample.
        layout: of the store.
    """
    if layout.total_bytes < compression.WORTH_BYTES:
        return None
    count = max(1, min(len(blocks[0]), COMPRESSED_BYTES // layout.sample_bytes))
    batch = EncodedBatch.of(encoding, [block[:count] for block in blocks])
    stored = batch.stored.cpu()
    encoding.saturate(stored, batch.extremes.cpu())
    elements = stored.view(torch.uint8).numpy().view(f"V{layout.itemsize}")
    return compression.worth(list(np.ascontiguousarray(elements).reshape(count * layout.sample_chunks, -1)))
