"""Each stage beside its limit: extraction against the bare forward pass, cached epochs against online ones.

    python benchmarks/stages.py [--backbone vit_s] [--backbone vit_b] [--images 384] [--repeats 3] [--data-dir FOLDER]

Random weights. Every measurement is a process of its own, so that its peak memory is its own; within a repeat all
stages run in turn. Prints medians, ratios and the machine's limits (memory copy; write and fsync to the same disk).
Without --data-dir the images are synthetic 480 x 360 JPEGs.

Cached epochs are the second and third of a run: the first reads from disk to memory and checks every checksum. A cold
epoch is a first one, of files that no one has read since they were written (their pages are dropped). How much of
reading is hidden behind training: (reading alone + training alone - both) / the smaller of the two.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from made_up import random_backbone
from peak import peak_gigabytes
from PIL import Image

from losa_cache import TrainConfig, open_cache
from losa_cache.cache.precision import get_precision
from losa_cache.cache.store import ActivationCache
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.inputs import open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, machine
from losa_cache.sidenet.operand import dense
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.train.batch import Batch, Request, Source
from losa_cache.train.cached import CachedSource, open_cached
from losa_cache.train.loop import make_optimizer, train_epoch
from losa_cache.train.online import OnlineSource
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import epoch_requests
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import frozen_tail

BATCH, RANK, PRECISION = 64, 16, "bfloat16"
Figures = dict[str, float]


def forward(name: str, folder: Path, images: int) -> Figures:
    """Time the bare forward pass of the same model, batch and precision, on pixels that are already there."""
    device = choose_device()
    backbone = random_backbone(name, device)
    pixels = torch.randint(0, 256, (BATCH, *backbone.input.size), dtype=torch.uint8, device=device)
    compute = backbone.compute_dtype(PRECISION)

    def once() -> None:
        with torch.inference_mode(), torch.autocast(device.type, compute, enabled=compute != torch.float32):
            backbone.model(backbone.input.normalise(pixels))
        if device.type == "cuda":
            torch.cuda.synchronize()

    once()
    started = perf_counter()
    passes = max(1, images // BATCH)
    for _ in range(passes):
        once()
    return {"images_per_second": passes * BATCH / (perf_counter() - started)}


def extraction(name: str, folder: Path, images: int) -> Figures:
    """Time decode, forward, encode and write of the whole set."""
    out, meter = folder / f"{name}.zarr", Meter()
    for leftover in (out, out.with_name(f"{name}.zarr.receipts")):
        shutil.rmtree(leftover, ignore_errors=True)
    extract(name, "folder", data_dir=folder / "images", weights="random", out=out, batch_size=BATCH, meter=meter)
    return {
        "images_per_second": meter.images / meter.seconds,
        "waited_decode": meter.waited_decode,
        "waited_write": meter.waited_write,
        "gigabytes": meter.bytes / 1e9,
    }


def cached_epoch(residency: str) -> Callable[[str, Path, int], Figures]:
    """Time epochs of LoSA from the cache, kept there."""

    def measured(name: str, folder: Path, images: int) -> Figures:
        return epochs(name, folder, cached_source(name, folder, residency), warm=None, count=2)

    return measured


def reading(name: str, folder: Path, images: int) -> Figures:
    """Time epochs in which nothing is trained."""
    source = cached_source(name, folder, "disk")
    return _read(source, 1, 2)


def training(name: str, folder: Path, images: int) -> Figures:
    """Time epochs in which nothing is read: one batch again and again."""
    source = cached_source(name, folder, "disk")
    batch = next(iter(source.batches(_requests(source.cache, 0)[:1])))
    return epochs(name, folder, Again(batch), warm=None, count=2)


def cold_reading(name: str, folder: Path, images: int) -> Figures:
    """Time a first epoch in which nothing is trained."""
    drop_pages(folder / f"{name}.zarr")
    return _read(cached_source(name, folder, "disk"), 0, 1)


def cold_epoch(name: str, folder: Path, images: int) -> Figures:
    """Time a first epoch from the disk, by a process that has trained before."""
    training(name, folder, images)
    drop_pages(folder / f"{name}.zarr")
    return epochs(name, folder, cached_source(name, folder, "disk"), warm=0, count=1)


class Again:
    """One batch in place of every other."""

    def __init__(self, batch: Batch) -> None:
        self._batch = replace(batch, blocks=[block.clone() for block in dense(batch.blocks)])

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield it for each request."""
        for _ in requests:
            yield self._batch

    def spent(self) -> dict[str, float]:
        """Nothing is waited for."""
        return {}

    def bandwidth(self) -> None:
        """Nothing is read."""

    def close(self) -> None:
        """Nothing is open."""


def cached_source(name: str, folder: Path, residency: str) -> CachedSource:
    cache, placement = open_cache(folder / f"{name}.zarr"), Placement.choose(residency=residency)
    points, pooling = cache.manifest.points, pooling_of(cache.manifest.tail)
    return open_cached(cache, points, placement, samples=cache.samples, passes=9, batch_size=BATCH, pooling=pooling)


def _requests(cache: ActivationCache, epoch: int) -> list[Request]:
    return epoch_requests(cache.samples, batch_size=BATCH, seed=0, epoch=epoch)


def _read(source: CachedSource, first: int, epochs: int) -> Figures:
    for epoch in range(first):
        for _ in source.batches(_requests(source.cache, epoch)):
            pass
    started = perf_counter()
    for epoch in range(first, first + epochs):
        for _ in source.batches(_requests(source.cache, epoch)):
            pass
    seconds = (perf_counter() - started) / epochs
    gigabytes = source.spent()["gigabytes"] / (first + epochs)
    source.close()
    images = len(source.cache.samples)
    return {"seconds": seconds, "images_per_second": images / seconds, "gb_per_second": gigabytes / seconds}


def drop_pages(store: Path) -> None:
    """Drop the pages of a store's files, which are synced, from the page cache."""
    for file in store.rglob("c.*"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def online_epoch(name: str, folder: Path, images: int) -> Figures:
    """Time one epoch of LoSA with the backbone in the loop."""
    inputs = open_inputs(
        name, "folder", data_dir=folder / "images", weights="random", precision=PRECISION, device=choose_device()
    )
    points, encoding = inputs.manifest.points, get_precision(PRECISION).fit([], tokens=1, prefix=0)
    source = OnlineSource(inputs, points, encoding, points, workers=os.cpu_count() or 1)
    return epochs(name, folder, source, warm=BATCH, count=1)


def epochs(name: str, folder: Path, source: Source, *, warm: int | None, count: int) -> Figures:
    """Time epochs, after one of so many images (``None``: all)."""
    cache, device, config = (
        open_cache(folder / f"{name}.zarr"),
        choose_device(),
        TrainConfig(rank=RANK, batch_size=BATCH),
    )
    adapter = new_adapter(cache.manifest, frozen_tail(cache), config).to(device)
    optimizer = make_optimizer(adapter, config)
    autocast = Placement(device).autocast(PRECISION)
    if warm != 0:
        train_epoch(adapter, optimizer, source, cache.samples[:warm], config, epoch=0, autocast=autocast)
    started = perf_counter()
    for epoch in range(1, 1 + count):
        train_epoch(adapter, optimizer, source, cache.samples, config, epoch=epoch, autocast=autocast)
    seconds = (perf_counter() - started) / count
    source.close()
    return {"seconds": seconds, "images_per_second": len(cache.samples) / seconds}


STAGES: dict[str, Callable[[str, Path, int], Figures]] = {
    "forward": forward,
    "extraction": extraction,
    "cached epoch": cached_epoch("auto"),
    "from disk": cached_epoch("disk"),
    "reading": reading,
    "training": training,
    "cold reading": cold_reading,
    "cold epoch": cold_epoch,
    "online epoch": online_epoch,
}


def limits(folder: Path, size: int = 2**29) -> Figures:
    """Measure memory copy and disk write with fsync, of so many bytes, in GB/s."""
    data = np.ones(size, dtype=np.uint8)
    target = np.empty_like(data)
    copies, writes = [], []
    for _ in range(3):
        started = perf_counter()
        np.copyto(target, data)
        copies.append(data.nbytes / 1e9 / (perf_counter() - started))
        started = perf_counter()
        with open(folder / "limit", "wb") as file:
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
        writes.append(data.nbytes / 1e9 / (perf_counter() - started))
    (folder / "limit").unlink()
    return {"memory copy GB/s": statistics.median(copies), "disk write GB/s": statistics.median(writes)}


def make_images(folder: Path, count: int) -> None:
    """Write smooth random JPEGs in ten class folders."""
    generator = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 10}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(generator.integers(0, 256, (45, 60, 3), dtype=np.uint8))
        noise.resize((480, 360), Image.Resampling.BICUBIC).save(path, quality=90)


def measure(stage: str, name: str, folder: Path, images: int) -> Figures:
    """Run one stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--backbone", name]
    command += ["--images", str(images), "--work", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", help="default: vit_s and vit_b")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, help="a folder of class folders to use instead of synthetic images")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        keep_freed_memory()  # for every stage, the bare forward pass too
        figures: dict[str, Any] = STAGES[arguments.stage](arguments.backbone[0], arguments.work, arguments.images)
        figures["peak_gb"] = peak_gigabytes()
        if torch.cuda.is_available():
            figures["device_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory(dir=".") as work:
        folder = Path(work)
        os.environ["LOSA_CACHE_HOME"] = str(folder / "home")
        if arguments.data_dir:
            (folder / "images").symlink_to(arguments.data_dir.resolve())
        else:
            make_images(folder / "images", arguments.images)
        print(f"{machine()}; " + ", ".join(f"{k} {v:.2f}" for k, v in limits(folder).items()))
        for name in arguments.backbone or ["vit_s", "vit_b"]:
            runs: dict[str, list[Figures]] = {stage: [] for stage in STAGES}
            for _ in range(arguments.repeats):
                for stage, results in runs.items():
                    results.append(measure(stage, name, folder, arguments.images))
            report(name, runs)


def report(name: str, runs: dict[str, list[Figures]]) -> None:
    """Print medians, and the two ratios run by run."""
    print(f"\n{name}")
    for stage, results in runs.items():
        keys = results[0]
        print(f"  {stage:<13}" + ", ".join(f"{k} {statistics.median(r[k] for r in results):.2f}" for k in keys))
    for label, above, below in (
        ("extraction / bare forward, images/s", "extraction", "forward"),
        ("cached / online epoch, images/s", "cached epoch", "online epoch"),
        ("cached, from disk / online epoch, images/s", "from disk", "online epoch"),
        ("cached epoch / training alone, images/s", "cached epoch", "training"),
    ):
        _print_median(
            label,
            [a["images_per_second"] / b["images_per_second"] for a, b in zip(runs[above], runs[below], strict=True)],
        )
    for label, alone, both in (
        ("hidden of the smaller of reading and training", "reading", "from disk"),
        ("the same of a cold epoch", "cold reading", "cold epoch"),
    ):
        seconds = zip(*([run["seconds"] for run in runs[stage]] for stage in (alone, "training", both)), strict=True)
        _print_median(label, [(read + train - whole) / min(read, train) for read, train, whole in seconds])


def _print_median(label: str, values: list[float]) -> None:
    print(f"  {label}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
