"""From pixels to encoded points in host memory: what an extraction computes, without decoding and without the disk."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from losa_cache.backbone import Backbone
from losa_cache.cache.precision import EncodedBatch, Encoding
from losa_cache.extract.meter import Meter
from losa_cache.extract.on_cuda import CudaForward

Fetch = Callable[[], tuple[Tensor, Tensor]]
"""Waits for the results of a batch and gives ``EncodedBatch.stored`` and ``EncodedBatch.extremes``, on the host."""


class Forward(Protocol):
    """The contract of running batches."""

    def run(self, batches: Sequence[Tensor]) -> list[Fetch]:
        """Begin to run batches of pixels, uint8 ``(batch, *input.shape)`` on host or device; each gives its results."""
        ...


def choose_forward(
    backbone: Backbone,
    points: Sequence[str],
    encoding: Encoding,
    *,
    compute: torch.dtype,
    batch_size: int,
    full_batches: int,
    meter: Meter,
) -> Forward:
    """Choose how a backbone runs batches: with CUDA graphs and streams on a CUDA device, unless the backbone is
    streamed.

    Args:
        backbone: on its device.
        points: points whose values are encoded.
        encoding: their encoding, on that device.
        compute: dtype of the matrix products.
        batch_size: images of the largest batch.
        full_batches: approximate number of batches of that size to come.
        meter: counts the time of each part.
    """
    if backbone.device.type == "cuda" and backbone.streamed is None:
        return CudaForward(
            backbone, points, encoding, compute=compute, batch_size=batch_size, full_batches=full_batches, meter=meter
        )
    return HostForward(backbone, points, encoding, compute=compute, meter=meter)


class HostForward:
    """Run batches one after the other, or together if the backbone is streamed; results are ready at once."""

    def __init__(
        self, backbone: Backbone, points: Sequence[str], encoding: Encoding, *, compute: torch.dtype, meter: Meter
    ) -> None:
        self._backbone, self._points, self._encoding = backbone, points, encoding
        self._compute, self._meter = compute, meter
        self._target = backbone.device if backbone.streamed is None else torch.device("cpu")

    def run(self, batches: Sequence[Tensor]) -> list[Fetch]:
        """Run batches as the contract says."""
        backbone = self._backbone
        shape = (len(self._points), backbone.tokens, backbone.width)
        encoded = [EncodedBatch.empty(self._encoding, len(pixels), shape, self._target) for pixels in batches]
        started, encoding = perf_counter(), self._meter.encode
        backbone.run_all(batches, self._points, [partial(self._put, batch) for batch in encoded], compute=self._compute)
        self._meter.forward += perf_counter() - started - (self._meter.encode - encoding)
        return [partial(_ready, batch.stored.cpu(), batch.extremes.cpu()) for batch in encoded]

    def _put(self, batch: EncodedBatch, at: int, value: Tensor) -> None:
        started = perf_counter()
        batch.put(at, value)
        if self._backbone.device.type == "cpu":  # a device computes on while this returns: all counts as the backbone's
            self._meter.encode += perf_counter() - started


def _ready(stored: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
    return stored, extremes
