"""The shard writer beside dd: the same bytes to the same disk, both with fsync, in turn.

    python benchmarks/write.py [FOLDER] [--gigabytes 2] [--repeats 5]

FOLDER lies on the disk to measure. The values are a ViT-S's in shape (257 tokens x 384 channels, 12 layers): as int8,
which does not compress, and as bfloat16, which does. dd copies finished shards, from the page cache, with a block of 1
MiB. A first round warms up; who goes first changes from round to round.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from losa_cache.cache.layout import Layout, plan_layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import EncodedBatch, Encoding, get_precision
from losa_cache.cache.shard import pack
from losa_cache.cache.storage import shard_path
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.machine.device import default_workers

LAYERS, TOKENS, WIDTH, BATCH = 12, 257, 384, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["int8", "bfloat16"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        compare(arguments.only, arguments.folder, arguments.gigabytes, arguments.repeats)
        return
    for name in ("int8", "bfloat16"):  # a process each, for its own peak of memory
        subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)


def compare(name: str, folder: Path, gigabytes: float, repeats: int) -> None:
    """Write and copy in turn; print medians."""
    encoding, stored = features(name)
    precision = get_precision(name)
    samples = int(gigabytes * 1e9 / stored[0].nbytes)
    planes, tokens, columns = encoding.stored_shape(LAYERS, TOKENS, WIDTH)
    layout = plan_layout(samples=samples, layers=planes, tokens=tokens, columns=columns, itemsize=precision.itemsize)
    layout = replace(layout, compressed=name == "bfloat16")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        os.environ["LOSA_CACHE_HOME"] = work
        source = Path(work) / "first.zarr"
        _, shards = write(source, layout, encoding, stored)
        size = sum(shard.stat().st_size for shard in shards)
        for turn in range(repeats):
            for who in (ours, theirs) if turn % 2 else (theirs, ours):
                os.sync()
                if who is ours:
                    path = Path(work) / "c.zarr"
                    who.append(size / write(path, layout, encoding, stored)[0])
                    shutil.rmtree(path)
                    shutil.rmtree(path.with_name("c.zarr.receipts"))
                else:
                    who.append(size / copy(shards, Path(work) / "copy"))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"{name:<9} {size / 1e9:.2f} GB in {layout.shards} shards: writer {spread(ours, 1e9)} GB/s, "
        f"dd {spread(theirs, 1e9)} GB/s, ratio {spread(ratios)}; memory beyond one batch of "
        f"{BATCH * layout.sample_bytes / 1e6:.0f} MB: {grown:.0f} MB",
        flush=True,
    )


def features(name: str) -> tuple[Encoding, np.ndarray]:
    """Encode a batch of values with channels of different sizes."""
    torch.manual_seed(0)
    blocks = [torch.randn(BATCH, TOKENS, WIDTH) * torch.rand(WIDTH).exp() for _ in range(LAYERS)]
    encoding = get_precision(name).fit(blocks[:1] * LAYERS, tokens=TOKENS, prefix=1)
    return encoding, EncodedBatch.of(encoding, blocks).stored.view(torch.uint8).numpy()


def write(path: Path, layout: Layout, encoding: Encoding, stored: np.ndarray) -> tuple[float, list[Path]]:
    """Write every row as the extraction does, and return the seconds of that and the shards."""
    tapped = {"tap": "block", "layers": list(range(1, LAYERS + 1)), "embedding": False}
    described = Manifest(
        fields={**tapped, "precision": encoding.precision.name, "views": {"count": 1, "augment": None}},
        tokens={"total": TOKENS, "prefix": 1, "grid": [16, 16]},
        width=WIDTH,
        depth=LAYERS,
        classes=["one"],
        tail={},
        software={},
        encoding={"compressed": 0.8 if layout.compressed else None},
    )
    rows = layout.samples
    labels, ids = np.zeros(rows, dtype=np.int64), [f"{row:06d}" for row in range(rows)]
    with (
        lock_cache(path) as lock,
        CacheWriter.create(lock, described, layout, encoding, labels=labels, ids=ids, tail={}) as writer,
        ThreadPoolExecutor(default_workers()) as packers,
    ):
        started = perf_counter()
        for first in range(0, rows, BATCH):
            count = min(BATCH, rows - first)
            for place, packed in enumerate(packers.map(lambda sample: pack(sample, layout), stored[:count])):
                writer.append(first + place, packed)
        seconds = perf_counter() - started
        return seconds, [shard_path(path, described.fields["tap"], shard) for shard in range(layout.shards)]


def copy(shards: list[Path], folder: Path) -> float:
    """Copy files with dd, each with fsync, and return the seconds."""
    folder.mkdir()
    for shard in shards:
        shard.read_bytes()  # into the page cache
    started = perf_counter()
    for shard in shards:
        command = ["dd", f"if={shard}", f"of={folder / shard.name}", "bs=1M", "conv=fsync", "status=none"]
        subprocess.run(command, check=True)
    seconds = perf_counter() - started
    shutil.rmtree(folder)
    return seconds


def spread(values: list[float], unit: float = 1.0) -> str:
    return f"{statistics.median(values) / unit:.2f} ({min(values) / unit:.2f}-{max(values) / unit:.2f})"


if __name__ == "__main__":
    main()
