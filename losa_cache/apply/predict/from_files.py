"""Images and videos through the backbone: decoded as at extraction, some batches ahead, and answered batch by batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from losa_cache.apply.predict.answers import Answering, Found
from losa_cache.apply.predict.inputs import Item
from losa_cache.apply.predict.journal import Skipped
from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoded, Decoder, View
from losa_cache.data.picture import load_image
from losa_cache.data.pixel_rules import PixelRules
from losa_cache.data.samples import Samples
from losa_cache.data.transforms import InputSpec
from losa_cache.data.values import UnusedRangeError
from losa_cache.data.video import read_clip
from losa_cache.extract.meter import Meter

Forward = Callable[[Tensor], Mapping[str, Tensor]]
"""Pixels to what each adapter makes of them."""


@dataclass(frozen=True)
class _Batch:
    """Items that are decoded together, and those before them of which it is known that they cannot be.

    Attributes:
        start: number of the first item in the stream.
        items: of one kind, where videos have several clips.
        skipped: with their problems.
        clips: of each item.
    """

    start: int
    items: list[Item]
    skipped: list[Skipped]
    clips: int

    def views(self, clip: int) -> list[View]:
        """Say what is decoded: a clip of each item."""
        return [(self.start + place, clip or None) for place in range(len(self.items))]


def batches_of(stream: Iterable[Item], size: int, *, clips: int = 1) -> Iterator[_Batch]:
    """Cut a stream of items into batches of ``size``; a batch that holds problems alone is the last.

    Where videos have several clips, a batch holds images or videos.
    """
    start, items, skipped = 0, list[Item](), list[Skipped]()
    for item in stream:
        if item.problem:
            skipped.append(Skipped(item.id, item.problem))
            continue
        if items and (len(items) == size or (clips > 1 and items[0].is_video != item.is_video)):
            yield _Batch(start, items, skipped, clips if items[0].is_video else 1)
            start, items, skipped = start + len(items), [], []
        items.append(item)
    if items or skipped:
        yield _Batch(start, items, skipped, clips if items and items[0].is_video else 1)


@dataclass(frozen=True)
class Model:
    """What images pass through.

    Attributes:
        forward: pixels to what each adapter makes of them.
        spec: of the preprocessing.
        pin: whether pixels are put into pinned memory, for a GPU.
    """

    forward: Forward
    spec: InputSpec
    pin: bool = False


@dataclass(frozen=True)
class Decoding:
    """How images and videos are decoded.

    Attributes:
        batch_size: items a batch.
        workers: threads.
        clips: of a video.
        upright: whether pictures are turned as their files say.
        pixels: how files that are not 8-bit RGB become pixels.
        max_pixels: larger pictures are not decoded.
    """

    batch_size: int
    workers: int
    clips: int
    upright: bool
    pixels: PixelRules
    max_pixels: int


def answer_files(
    stream: Iterable[Item], load: Callable[[], Model], answering: Answering, decoding: Decoding, meter: Meter
) -> Iterator[Found]:
    """Answer images and videos, batch by batch.

    Args:
        stream: of items.
        load: gives the model; it is asked once there is something to decode.
        answering: makes numbers of what the model gives.
        decoding: how items become pixels.
        meter: is told what the time went into.

    Yields:
        rows and skipped inputs of each batch.
    """
    batches = batches_of(stream, decoding.batch_size, clips=decoding.clips)
    head = next(batches, None)
    if head is None:
        return
    if not head.items:
        yield answering.no_rows(), head.skipped
        return
    model = load()
    waiting: deque[_Batch] = deque()
    window: dict[int, Item] = {}
    samples = _windowed(window, model.spec, decoding)
    options: dict[str, Any] = {"workers": decoding.workers, "clips": decoding.clips, "turn": decoding.upright}
    decoder = Decoder(samples, model.spec, pin=model.pin, **options)

    def plan() -> Iterator[list[View]]:
        for batch in chain([head], batches):
            waiting.append(batch)
            window.update((batch.start + place, item) for place, item in enumerate(batch.items))
            if batch.items:
                yield from map(batch.views, range(batch.clips))

    try:
        with closing(decoder.batches(plan())) as decoded:
            while (pixels := _next(decoded, meter)) is not None:
                batch, failures = waiting.popleft(), dict[int, str]()
                for clip in range(batch.clips):
                    taken = pixels if clip == 0 else next(decoded)
                    failures |= {place: reason for place, (_, reason) in taken.failures.items()}
                    answering.add(model.forward(taken.pixels))
                rows, bad = answering.found([item.id for item in batch.items], batch.clips, failures)
                yield rows, batch.skipped + bad
                for place in range(len(batch.items)):
                    del window[batch.start + place]
        yield from ((answering.no_rows(), batch.skipped) for batch in waiting)
    finally:
        decoder.close()


def _next(decoded: Iterator[Decoded], meter: Meter) -> Decoded | None:
    asked = perf_counter()
    found = next(decoded, None)
    meter.waited_decode += perf_counter() - asked
    return found


def _windowed(window: Mapping[int, Item], spec: InputSpec, decoding: Decoding) -> Samples:
    """Make samples of the items that are on their way: none is kept before or after."""

    def clip(number: int, wanted: Clip) -> Iterator[Image.Image]:
        item = window[number]
        if item.is_video:
            yield from read_clip(item.path, wanted)
        elif spec.frames > 1:
            raise ValueError(f"it is a picture, and the adapter was trained on clips of {spec.frames} frames")
        else:
            yield _picture(item.path, decoding)

    def load(number: int) -> Image.Image:
        return next(clip(number, Clip()))

    return Samples("inputs", "", (), [], np.empty(0, np.int64), load, "", clip)


def _picture(path: Path, decoding: Decoding) -> Image.Image:
    """Decode a picture by the rules of the adapters, which nobody chooses here.

    Raises:
        ValueError: or whatever else the decoder raises.
    """
    try:
        return load_image(path, decoding.pixels, max_pixels=decoding.max_pixels)
    except UnusedRangeError as error:
        raise ValueError(
            f"{error.fact}, which the images of the adapter's training did not: scale it as they are, or train on a "
            "cache that was extracted with --range"
        ) from error
