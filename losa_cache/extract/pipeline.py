"""The pipeline of an extraction: decoding, forward pass with encoding, and writing run at the same time.

Decoding runs a few batches ahead. The main thread keeps the device busy (``forward``). One thread writes the results,
and a few others compute checksums and compress for it. Both queues are short, so the memory is that of a few batches. A
backbone that is streamed through its device gets many batches at once, and its results are collected on the host.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from math import prod
from time import perf_counter

import torch

from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import get_precision
from losa_cache.cache.shard import pack
from losa_cache.cache.writer import CacheWriter, saying_unfinished
from losa_cache.data.decode import DECODE_AHEAD, Decoded, View
from losa_cache.extract.forward import Fetch, choose_forward
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import batches, batches_at_once, views_of
from losa_cache.inputs import Inputs
from losa_cache.machine.memory import available_memory
from losa_cache.sources import Sources

WRITE_BEHIND = 2


def run(
    inputs: Inputs,
    writer: CacheWriter,
    sources: Sources | None,
    work: Iterable[Sequence[int]],
    *,
    images: int,
    batch_size: int,
    workers: int,
    skip_errors: bool,
    meter: Meter,
) -> None:
    """Write rows.

    Args:
        inputs: what is extracted.
        writer: writer of the cache.
        sources: lists of source files, if samples lie in files of their own.
        work: runs of rows to write, each in ascending order. The next is asked for when its first batch is decoded, a
            few batches ahead; then it must be there at once.
        images: approximate number of all these rows.
        batch_size: images in a forward pass.
        workers: number of threads or processes that decode.
        skip_errors: leave out images that do not decode instead of stopping.
        meter: counts the work.

    Raises:
        UserError: for an image that does not decode (unless skipped), or a disk that fills up.
    """
    backbone, samples, manifest = inputs.backbone, inputs.samples, writer.manifest
    encoding = writer.encoding.to(backbone.device)
    at_once = pass_length(inputs, writer.layout, batch_size)
    forward = choose_forward(
        backbone,
        manifest.points,
        encoding,
        compute=inputs.compute,
        batch_size=min(batch_size, writer.layout.samples),
        full_batches=images // batch_size,
        meter=meter,
    )
    decoder = inputs.decoder(workers)
    asked_for: deque[tuple[range, frozenset[int]]] = deque()  # batches that are decoded

    def views() -> Iterator[list[View]]:
        for run_of_rows in work:
            for batch in batches(writer.layout, run_of_rows, batch_size):
                asked_for.append(batch)
                yield views_of(batch[0], manifest.views)

    decoded = decoder.batches(views(), ahead=max(DECODE_AHEAD, at_once))
    writes: deque[Future[None]] = deque()
    with (
        saying_unfinished(writer.path),
        ThreadPoolExecutor(workers, "pack") as packers,
        ThreadPoolExecutor(1, "write") as scribe,
    ):
        try:
            while taken := _take(decoded, at_once, meter):
                if not skip_errors:
                    for batch in taken:
                        batch.require(samples, "mend it, or pass --on-error skip")
                results = forward.run([batch.pixels for batch in taken])
                for batch, fetch in zip(taken, results, strict=True):
                    rows, keep = asked_for.popleft()
                    asked = perf_counter()
                    while len(writes) >= max(WRITE_BEHIND, at_once):
                        writes.popleft().result()
                    meter.waited_write += perf_counter() - asked
                    failures = {rows[place]: reason for place, (_, reason) in batch.failures.items()}
                    writes.append(scribe.submit(_write, writer, sources, packers, rows, keep, failures, fetch, meter))
            while writes:
                writes.popleft().result()
        finally:
            decoded.close()
            decoder.close()
            for write in writes:
                write.cancel()


def _take(decoded: Iterator[Decoded], most: int, meter: Meter) -> list[Decoded]:
    """Wait for the next batches, as many as go through the backbone together."""
    asked = perf_counter()
    taken = list(islice(decoded, most))
    meter.waited_decode += perf_counter() - asked
    return taken


def pass_length(inputs: Inputs, layout: Layout, batch_size: int) -> int:
    """Give the number of batches that go through the backbone together: one or, if it is streamed, as many as fit in
    host memory.
    """
    backbone = inputs.backbone
    if backbone.streamed is None:
        return 1
    memory = available_memory(torch.device("cpu"))
    if backbone.device.type == "cpu":
        memory -= backbone.streamed.budget
    stream = backbone.trunk_tokens * backbone.width * torch.float32.itemsize
    streams = 1 + get_precision(inputs.manifest.precision).chained  # and what the next layer is predicted from
    return batches_at_once(layout.sample_bytes + streams * stream + prod(backbone.input.shape), batch_size, memory)


def _write(
    writer: CacheWriter,
    sources: Sources | None,
    packers: ThreadPoolExecutor,
    rows: range,
    keep: frozenset[int],
    failures: dict[int, str],
    fetch: Fetch,
    meter: Meter,
) -> None:
    stored, extremes = fetch()
    fetched = perf_counter()
    overflowed, non_finite = writer.encoding.saturate(stored, extremes)
    samples = stored.view(torch.uint8).numpy()
    wanted = sorted(keep)
    if sources is not None:
        sources.read(wanted, packers)
    packed = packers.map(lambda r: None if r in failures else pack(samples[r - rows.start], writer.layout), wanted)
    for row, sample in zip(wanted, packed, strict=True):
        if sources is not None:
            sources.written(row)
        if sample is None:
            writer.append(row, None, failures[row])
        else:
            place = row - rows.start
            writer.append(row, sample, overflowed=int(overflowed[place]), non_finite=int(non_finite[place]))
            meter.bytes += sample.data.nbytes
        meter.images += 1
    meter.write += perf_counter() - fetched
    meter.update()
