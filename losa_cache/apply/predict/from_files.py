"""Images and videos through the backbone: decoded as at extraction, some batches ahead, and answered batch by batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

import numpy as np
from PIL import Image
from torch import Tensor

from losa_cache.apply.predict.answers import Answering
from losa_cache.apply.predict.inputs import Item
from losa_cache.apply.predict.journal import Skipped
from losa_cache.apply.predict.table import Rows, plain
from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoder, View
from losa_cache.data.picture import load_image
from losa_cache.data.samples import Samples
from losa_cache.data.transforms import InputSpec
from losa_cache.data.video import read_clip
from losa_cache.extract.meter import Meter

Forward = Callable[[Tensor], Mapping[str, Tensor]]
"""Pixels to what each adapter makes of them."""
Found = tuple[Rows, list[Skipped]]
"""Answers of a batch, and its inputs without one."""


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


def answer_files(
    stream: Iterable[Item],
    forward: Callable[[], Forward],
    answering: Answering,
    spec: Callable[[], InputSpec],
    *,
    batch_size: int,
    workers: int,
    clips: int,
    upright: bool,
    max_pixels: int,
    pin: bool,
    meter: Meter,
) -> Iterator[Found]:
    """Answer images and videos, batch by batch.

    Args:
        stream: of items.
        forward: loads the model, when the first batch needs it.
        answering: makes numbers of what the model gives.
        spec: gives the preprocessing.
        batch_size: items a batch.
        workers: threads that decode.
        clips: of a video.
        upright: whether pictures are turned as their files say.
        max_pixels: larger pictures are not decoded.
        pin: put pixels into pinned memory, for a GPU.
        meter: is told what the time went into.

    Yields:
        rows and skipped inputs of each batch.
    """
    waiting: deque[_Batch] = deque()
    window: dict[int, Item] = {}
    width = [answer.width for answer in answering.table.answers]
    batches = batches_of(stream, batch_size, clips=clips)
    head = list(islice(batches, 1))
    if not (head and head[0].items):
        yield from ((_no_rows(width), batch.skipped) for batch in head)
        return
    run = forward()
    decoder = Decoder(
        _windowed(window, spec(), max_pixels), spec(), workers=workers, clips=clips, pin=pin, turn=upright
    )

    def plan() -> Iterator[list[View]]:
        for source in (head, batches):
            for batch in source:
                waiting.append(batch)
                window.update((batch.start + place, item) for place, item in enumerate(batch.items))
                if batch.items:
                    yield from map(batch.views, range(batch.clips))

    try:
        with closing(decoder.batches(plan())) as decoded:
            while True:
                asked = perf_counter()
                pixels = next(decoded, None)
                meter.waited_decode += perf_counter() - asked
                if pixels is None:
                    break
                batch, failures = waiting.popleft(), dict[int, str]()
                for clip in range(batch.clips):
                    if clip:
                        pixels = next(decoded)
                    failures |= {place: reason for place, (_, reason) in pixels.failures.items()}
                    answering.add(run(pixels.pixels))
                kept = [place for place in range(len(batch.items)) if place not in failures]
                values = tuple(own[kept] for own in answering.values(batch.clips))
                ids = [item.id for item in batch.items]
                bad = [Skipped(ids[place], plain(failures[place])) for place in sorted(failures)]
                for place in range(len(batch.items)):
                    del window[batch.start + place]
                yield Rows([ids[place] for place in kept], values), batch.skipped + bad
        yield from ((_no_rows(width), batch.skipped) for batch in waiting)
    finally:
        decoder.close()


def _no_rows(widths: list[int]) -> Rows:
    return Rows([], tuple(np.empty((0, width), np.float32) for width in widths))


def _windowed(window: Mapping[int, Item], spec: InputSpec, max_pixels: int) -> Samples:
    """Make samples of the items that are on their way: none is kept before or after."""

    def clip(number: int, wanted: Clip) -> Iterator[Image.Image]:
        item = window[number]
        if item.is_video:
            yield from read_clip(item.path, wanted)
        elif spec.frames > 1:
            raise ValueError(f"it is a picture, and the adapter was trained on clips of {spec.frames} frames")
        else:
            yield load_image(item.path, max_pixels=max_pixels)

    nothing = Samples("inputs", "", (), [], np.empty(0, np.int64), lambda number: next(clip(number, Clip())), "")
    return replace(nothing, clip=clip)
