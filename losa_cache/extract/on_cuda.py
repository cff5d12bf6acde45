"""A backbone on a CUDA device: copies run beside the computation, and the forward pass is a CUDA graph.

Two slots of device memory take turns. While the device computes in one, the results of the previous batch are copied
from the other to pinned host memory, and the pixels of the next batch are copied there. Each copy has its own stream.

**A graph and an eager pass give the same bytes.** A graph replays the same kernels with the same arguments that an
eager pass launches. So a cache does not depend on which batches were replayed: the last, smaller batch runs eagerly, a
resumed extraction of few batches runs eagerly as a whole, and the identity does not mention it. This is checked: before
a graph is used, a batch of noise is run both ways, and unless every stored byte is the same, the extraction continues
eagerly. Ways that round differently (``torch.compile`` of the blocks) are not used, because a resumed extraction might
not have them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from losa_cache.backbone import Backbone
from losa_cache.cache.precision import EncodedBatch, Encoding
from losa_cache.extract.meter import Meter
from losa_cache.machine.capture import after_failed_capture, capture

log = logging.getLogger(__name__)

WORTH_BATCHES = 4  # what a graph saves in fewer does not pay for making it
SLOTS = 2
TIMED = 3

Way = Callable[[], object]


def _event() -> torch.cuda.Event:
    """Give a timed event. Threads that wait for it leave the core to those that decode."""
    return torch.cuda.Event(enable_timing=True, blocking=True)


@dataclass
class _Slot:
    """Device memory of the largest batch, the graph of a forward pass on it, and its last use.

    Attributes:
        pixels: uint8 ``(batch, *input.shape)``.
        stored, extremes: as of ``EncodedBatch``.
        graph: from pixels to these, for whole batches.
        computed: the pixels were read, and the results are there.
        copied: the results are on the host.
    """

    pixels: Tensor
    stored: Tensor
    extremes: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    computed: torch.cuda.Event = field(default_factory=_event)
    copied: torch.cuda.Event = field(default_factory=_event)


class CudaForward:
    """Run batches on a CUDA device (``losa_cache.extract.forward.Forward``).

    Args:
        backbone: on the device, not streamed.
        points: whose values are encoded.
        encoding: of them, on the device.
        compute: dtype of the matrix products.
        batch_size: images of the largest batch.
        full_batches: how many of that size are to come, about: a graph is made where that pays.
        meter: is told what the device's time went into.
        aside: encode on a stream of its own, beside the next block; by default what is predicted from block to block,
            whose many passes over memory fit beside the products of a block (2 % faster at ViT-B on an H200).

    Attributes:
        why_eager: why there is no graph; ``None`` if there is one.
    """

    def __init__(
        self,
        backbone: Backbone,
        points: Sequence[str],
        encoding: Encoding,
        *,
        compute: torch.dtype,
        batch_size: int,
        full_batches: int,
        meter: Meter,
        aside: bool | None = None,
    ) -> None:
        self._backbone, self._points, self._encoding = backbone, points, encoding
        self._compute, self._batch, self._meter = compute, batch_size, meter
        self._device, self._turn = backbone.device, 0
        self._bare: torch.cuda.CUDAGraph | None = None
        self._encoding_share = 0.0  # of the device's time; measured once, for whoever makes a graph
        shape = (len(points), backbone.tokens, backbone.width)
        with torch.cuda.device(self._device):
            self._uploads, self._copies = torch.cuda.Stream(), torch.cuda.Stream()
            beside = encoding.precision.chained if aside is None else aside
            self._aside = torch.cuda.Stream() if beside else None
            self._slots = []
            for _ in range(SLOTS):
                encoded = EncodedBatch.empty(encoding, batch_size, shape, self._device)
                pixels = torch.zeros(batch_size, *backbone.input.shape, dtype=torch.uint8, device=self._device)
                self._slots.append(_Slot(pixels, encoded.stored, encoded.extremes))
            self._uploads.wait_stream(torch.cuda.current_stream())  # the slots' memory is ready then
            self.why_eager: str | None = f"{full_batches} whole batches are too few for a graph"
            if full_batches >= WORTH_BATCHES:
                self.why_eager = self._make_graphs()

    def run(self, batches: Sequence[Tensor]) -> list[Callable[[], tuple[Tensor, Tensor]]]:
        """Start batches of pixels; each result waits for its copy to the host."""
        with torch.cuda.device(self._device):
            return [self._begin(pixels) for pixels in batches]

    def bare(self) -> None:
        """Start a bare forward pass of a whole batch: nothing is uploaded, encoded or copied."""
        if self._bare is not None:
            self._bare.replay()
        else:
            self._backbone.run(self._slots[0].pixels, [], _nothing, compute=self._compute)

    def _begin(self, pixels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        slot, main, count = self._slots[self._turn], torch.cuda.current_stream(), len(pixels)
        self._turn = (self._turn + 1) % SLOTS
        # The pixels of this slot may be replaced once the forward pass that read them is over.
        self._uploads.wait_event(slot.computed)
        if pixels.is_cuda:  # decoded there: their memory is not used again before they are copied
            pixels.record_stream(self._uploads)
        with torch.cuda.stream(self._uploads):
            slot.pixels[:count].copy_(pixels, non_blocking=True)
        main.wait_stream(self._uploads)
        # Its results may be replaced once they are on the host.
        main.wait_event(slot.copied)
        began, slot.computed, copying, slot.copied = (_event() for _ in range(4))
        began.record(main)
        if slot.graph is not None and count == self._batch:
            slot.graph.replay()
        else:
            self._compute_in(slot, count)
        slot.computed.record(main)
        self._copies.wait_event(slot.computed)
        with torch.cuda.stream(self._copies):
            copying.record(self._copies)
            hosts = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in (slot.stored[:count], slot.extremes)
            ]
            slot.copied.record(self._copies)
        computed, copied = slot.computed, slot.copied  # of this batch: the slot's are soon of another

        def fetch() -> tuple[Tensor, Tensor]:
            copied.synchronize()
            seconds = began.elapsed_time(computed) / 1000  # all four events are past: nothing waits here
            self._meter.encode += self._encoding_share * seconds
            self._meter.forward += (1 - self._encoding_share) * seconds
            self._meter.copy += copying.elapsed_time(copied) / 1000
            return hosts[0], hosts[1]

        return fetch

    def _compute_in(self, slot: _Slot, count: int) -> None:
        """Run the backbone on a slot's first pixels, and encode into the slot."""
        encoded = EncodedBatch(self._encoding, slot.stored[:count], slot.extremes)
        sink = encoded.put if self._aside is None else _Aside(encoded, self._aside)
        self._backbone.run(slot.pixels[:count], self._points, sink, compute=self._compute)
        if isinstance(sink, _Aside):
            sink.join()

    def _make_graphs(self) -> str | None:
        """Make the graphs, and say why there are none if that fails."""
        try:
            self._capture()
            trouble = self._compare()
        except Exception as error:  # whatever a trunk does that a graph cannot hold, or no memory for another copy
            trouble = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        if trouble is not None:
            self._bare = None
            for slot in self._slots:
                slot.graph = None
            torch.cuda.synchronize()
            after_failed_capture(self._device)
            log.info("The forward pass is not run as a CUDA graph (%s).", trouble)
        whole, bare = (_seconds(way) for way in (self._whole, self.bare))
        self._encoding_share = max(0.0, 1 - bare / whole)
        return trouble

    def _whole(self) -> None:
        slot = self._slots[0]
        if slot.graph is not None:
            slot.graph.replay()
        else:
            self._compute_in(slot, self._batch)

    def _capture(self) -> None:
        """Capture the forward pass into each slot, and the bare one, one after the other in the same memory.

        They can share memory: they are replayed in one stream, so never at the same time, and nothing that they leave
            there is read later. Earlier passes in the stream of the capture do what torch compiles, measures or
            allocates on first use. Meanwhile other threads may allocate, as those that decode do.
        """
        stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

        def captured(way: Way) -> torch.cuda.CUDAGraph:
            graph = torch.cuda.CUDAGraph()
            with capture(graph, pool=pool, stream=stream):
                way()
            return graph

        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for slot in self._slots:
                self._compute_in(slot, self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        for slot in self._slots:
            slot.graph = captured(partial(self._compute_in, slot, self._batch))
        self._bare = captured(self.bare)

    def _compare(self) -> str | None:
        """Compare replayed results with eager ones on a batch of noise; give the difference, if there is one."""
        noise = torch.Generator().manual_seed(0)
        shape = self._slots[0].pixels.shape
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
        for slot in self._slots:
            slot.pixels.copy_(pixels)
        slot = self._slots[0]
        slot.stored.zero_()
        self._compute_in(slot, self._batch)
        stored, extremes = slot.stored.clone(), slot.extremes.clone()
        for slot in self._slots:
            assert slot.graph is not None
            slot.stored.zero_()
            slot.graph.replay()
            same = torch.equal(slot.stored.view(torch.uint8), stored.view(torch.uint8))
            if not same or not torch.equal(slot.extremes.view(torch.uint8), extremes.view(torch.uint8)):
                return "a replayed pass differs from an eager one"
        return None


class _Aside:
    """Encode a point's value on a stream of its own, while the main stream computes the next block.

    The main stream waits for the encoding of a value before it continues after the next value, because only then may
    the memory of the first be reused. So two values exist at a time.
    """

    def __init__(self, encoded: EncodedBatch, stream: torch.cuda.Stream) -> None:
        self._encoded, self._stream, self._held = encoded, stream, list[Tensor]()

    def __call__(self, at: int, value: Tensor) -> None:
        self.join()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._encoded.put(at, value)
        self._held = [value]

    def join(self) -> None:
        """Let the current stream wait for the running encoding."""
        if self._held:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._held = []


def _nothing(at: int, value: Tensor) -> None:
    """Do nothing with a value."""


def _seconds(way: Way) -> float:
    """Measure the device's time of a way, without its first run."""
    way()
    began, ended = _event(), _event()
    began.record()
    for _ in range(TIMED):
        way()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000
