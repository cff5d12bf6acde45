"""Points of a few images, unencoded: a calibration sample to fit an encoding to, or a second look at a cache."""

from collections.abc import Generator, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from losa_cache.cache import compression
from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import EncodedBatch, Encoding, get_precision
from losa_cache.data.decode import Decoded, View
from losa_cache.errors import UserError
from losa_cache.inputs import Inputs

IMAGES = 32  # some 8000 tokens of a ViT at 224 px
SAMPLE_BYTES = 512 * 1024 * 1024
COMPRESSED_BYTES = 64 * 1024 * 1024


def fit_encoding(inputs: Inputs, *, workers: int) -> Encoding:
    """Fit the precision of ``inputs`` to its first images; where there is nothing to fit, nothing is computed.

    Raises:
        UserError: if none of the images decodes.
    """
    precision = get_precision(inputs.manifest.precision)
    return precision.fit(block_sample(inputs, workers=workers) if precision.needs_fit else [])


def block_sample(inputs: Inputs, *, workers: int) -> list[Tensor]:
    """Run the backbone over the first images: samples are in random order, so these are a random choice.

    Args:
        inputs: what is to be extracted.
        workers: decoding threads.

    Returns:
        float32 ``(images, tokens, width)`` a point, on the backbone's device: 32 images, or as many as 512 MiB hold.

    Raises:
        UserError: if none of them decodes.
    """
    count = min(len(inputs.samples), images_at_once(inputs))
    ((batch, blocks),) = run_views(inputs, [[(index, None) for index in range(count)]], workers=workers)
    good = [place for place in range(count) if place not in batch.failures]
    if not good:
        index, reason = batch.failures[0]
        raise UserError(
            f"none of the {count} images could be decoded (first: {inputs.samples.ids[index]!r}, {reason})."
        )
    return [block[good] for block in blocks]


def images_at_once(inputs: Inputs) -> int:
    """Say how many images' points fit 512 MiB as float32: at least 1, at most 32."""
    one = len(inputs.manifest.points) * inputs.backbone.tokens * inputs.backbone.width * torch.float32.itemsize
    return min(IMAGES, max(1, SAMPLE_BYTES // one))


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
        blocks: of :func:`block_sample`.
        layout: of the store.
    """
    if layout.total_bytes < compression.WORTH_BYTES:
        return None
    count = max(1, min(len(blocks[0]), COMPRESSED_BYTES // layout.sample_bytes))
    batch = EncodedBatch.of(encoding, [block[:count] for block in blocks])
    stored = batch.stored.cpu()
    encoding.settle(stored, batch.extremes.cpu())
    elements = stored.view(torch.uint8).numpy().view(f"V{layout.itemsize}")
    return compression.worth(list(np.ascontiguousarray(elements).reshape(count * layout.sample_chunks, -1)))
