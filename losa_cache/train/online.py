"""Batches from the backbone itself, which runs for every batch. The contract is that of a cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from losa_cache.backbone import Backbone
from losa_cache.cache.precision import Encoding
from losa_cache.inputs import Inputs
from losa_cache.sidenet.operand import Block, dense
from losa_cache.train.batch import Batch, Request
from losa_cache.train.bottleneck import Bandwidth
from losa_cache.train.pixels import PixelSource
from losa_cache.train.stopwatch import Stopwatch


class OnlineSource:
    """Run the frozen backbone on the images of a :class:`~losa_cache.train.pixels.PixelSource`, and give its points,
    rounded as in a cache.

    Plain requests give exactly what a cache of the same inputs holds.

    Args:
        inputs: samples, and the backbone on the training device.
        points: points of the backbone, in the order of ``Batch.blocks``.
        encoding: the encoding of a cache, to whose precision values are rounded.
        encoded: names of the points of that encoding.
        options: the further arguments of the pixel source.
    """

    def __init__(
        self,
        inputs: Inputs,
        points: Sequence[str],
        encoding: Encoding,
        encoded: Sequence[str],
        **options: Any,
    ) -> None:
        self._backbone, self._compute = inputs.backbone, inputs.compute
        self._pixels = PixelSource(inputs, **options)
        self._rounding = Rounding.of(encoding.to(inputs.backbone.device), encoded, points)
        self._watch = Stopwatch(inputs.backbone.device)

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield a batch for each request.

        Raises:
            UserError: for an image that does not decode.
        """
        for batch in self._pixels.batches(requests):
            (images,) = dense(batch.blocks)
            with self._watch.computing("backbone"):
                blocks = self._rounding.blocks(self._backbone, images, compute=self._compute)
            yield replace(batch, blocks=blocks)

    def spent(self) -> dict[str, float]:
        """Give the seconds that the loop waited for images and for the backbone."""
        return self._pixels.spent() | self._watch.take()

    def bandwidth(self) -> Bandwidth | None:
        """Give ``None``: nothing is read from a cache."""
        return None

    def close(self) -> None:
        """Stop decoding."""
        self._pixels.close()


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
