"""The pipeline of stage one: decode, forward and encode, write, all at the same time.

Decoding runs in threads (image libraries let go of the interpreter) a few batches ahead; the main thread keeps the
device busy; one thread takes what comes back and writes it. Both queues are short, so memory is a few batches.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from losa_cache.ahead import work_ahead
from losa_cache.backbone import Backbone
from losa_cache.cache.precision import Precision
from losa_cache.cache.writer import CacheWriter
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import batches

DECODE_AHEAD = 2
WRITE_BEHIND = 2


@dataclass(frozen=True)
class Decoded:
    """A batch of pixels; failed samples are black, so that the others keep their places."""

    rows: range
    keep: frozenset[int]
    pixels: Tensor
    failures: dict[int, str]


def run(
    backbone: Backbone,
    samples: Samples,
    writer: CacheWriter,
    precision: Precision,
    *,
    compute: torch.dtype,
    batch_size: int,
    workers: int,
    skip_errors: bool,
    meter: Meter,
) -> None:
    """Write every missing shard.

    Args:
        backbone: on its device.
        samples: in the order of the cache's rows.
        writer: of the cache.
        precision: to encode in.
        compute: dtype of the forward's matrix products.
        batch_size: images a forward pass.
        workers: decoding threads.
        skip_errors: leave out images that do not decode instead of stopping.
        meter: is told of everything done.

    Raises:
        UserError: for an image that does not decode (unless skipped), or a disk that fills up.
    """
    plan = batches(writer.layout, writer.missing(), batch_size)
    meter.start(sum(len(keep) for _, keep in plan))
    transform = backbone.input.transform()
    layers = writer.manifest.layers
    fetch = _HostCopy(backbone.device)

    def load(row: int) -> Tensor | str:
        try:
            return transform(samples.load(row))
        except Exception as error:  # decoders raise anything; the image is named and the choice is the user's
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(workers, "decode") as decoders, ThreadPoolExecutor(1, "write") as scribe:

        def decode(batch: tuple[range, frozenset[int]]) -> Decoded:
            rows, keep = batch
            return _collate(rows, keep, list(decoders.map(load, rows)), samples, backbone, skip_errors)

        writes: deque[Future[None]] = deque()
        decoded = work_ahead(decode, plan, DECODE_AHEAD)
        try:
            for _ in plan:
                asked = perf_counter()
                batch = next(decoded)
                meter.waited_decode += perf_counter() - asked
                encoder = precision.encoder((len(batch.rows), *writer.layout.shape[1:]), backbone.device)
                pixels = batch.pixels.to(backbone.device, non_blocking=True)
                backbone.run(pixels, layers, encoder.put, compute=compute)
                encoded = fetch.start((encoder.values, encoder.extremes))
                asked = perf_counter()
                while len(writes) >= WRITE_BEHIND:
                    writes.popleft().result()
                meter.waited_write += perf_counter() - asked
                writes.append(scribe.submit(_write, writer, precision, batch, encoded, meter))
            while writes:
                writes.popleft().result()
        except OSError as error:
            raise UserError(
                f"writing {str(writer.path)!r} failed ({error.strerror}): finished shards are kept; make room and run "
                "the same command again to go on."
            ) from error
        finally:
            decoded.close()
            for write in writes:
                write.cancel()


def _collate(
    rows: range, keep: frozenset[int], images: list[Tensor | str], samples: Samples, backbone: Backbone, skip: bool
) -> Decoded:
    failures = {row: image for row, image in zip(rows, images, strict=True) if isinstance(image, str)}
    if failures and not skip:
        row, reason = next(iter(failures.items()))
        raise UserError(f"image {samples.ids[row]!r} does not decode ({reason}): mend it, or pass --on-error skip.")
    pinned = backbone.device.type == "cuda"
    pixels = torch.zeros(len(rows), *backbone.input.size, dtype=torch.uint8, pin_memory=pinned)
    for place, image in enumerate(images):
        if not isinstance(image, str):
            pixels[place] = image
    return Decoded(rows, keep, pixels, failures)


def _write(
    writer: CacheWriter,
    precision: Precision,
    batch: Decoded,
    encoded: Callable[[], tuple[Tensor, Tensor]],
    meter: Meter,
) -> None:
    values, extremes = encoded()
    overflowed, non_finite = precision.settle(values, extremes)
    stored = values.view(torch.uint8).numpy()
    for place, row in enumerate(batch.rows):
        if row not in batch.keep:
            continue
        if row in batch.failures:
            writer.append(row, None, batch.failures[row])
        else:
            writer.append(row, stored[place], overflowed=overflowed, non_finite=non_finite)
            overflowed = non_finite = 0  # counted once a batch
            meter.bytes += writer.layout.sample_bytes
        meter.images += 1
    meter.update()


class _HostCopy:
    """Bring results to the host behind the next forward pass: on a GPU by a stream of its own, into pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: tuple[Tensor, Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
        """Begin the copy; the returned function waits for its end."""
        if self._stream is None:
            values, extremes = (tensor.cpu() for tensor in tensors)
            return lambda: (values, extremes)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            hosts = []
            for tensor in tensors:
                hosts.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
                hosts[-1].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
            copied = self._stream.record_event()

        def wait() -> tuple[Tensor, Tensor]:
            copied.synchronize()
            return hosts[0], hosts[1]

        return wait
