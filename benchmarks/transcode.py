"""Transcoding beside a plain copy of the same bytes, and the limit of the disk beside both.

    python benchmarks/transcode.py [FOLDER] [--gigabytes 2] [--repeats 3] [--workers N]

FOLDER lies on the disk to measure. The cache has a ViT-S's shape (257 tokens x 384 channels, 12 layers), bfloat16,
random values. Each road reads it from the page cache and ends when every byte is synced. The lines: cp and sync of the
shards; as many bytes from memory, written and synced: the disk's limit; then copy_cache and transcode. GB/s are those
of the source's bytes; what is written is told beside it. Medians, and the range, of turns in alternating order.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

import losa_cache as lc
from losa_cache.cache.layout import plan_layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import get_precision
from losa_cache.cache.shard import pack
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.sidenet.pooled import tail_of_pooled

LAYERS, TOKENS, WIDTH, BATCH = 12, 257, 384, 32
NOISE = memoryview(np.random.default_rng(0).bytes(64 * 1024 * 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work = Path(name)
        os.environ["LOSA_CACHE_HOME"] = name
        cache = made(work / "source.zarr", arguments.gigabytes)
        shards = [Path(str(cache.shard_path(shard))) for shard in range(cache.layout.shards)]
        size = sum(shard.stat().st_size for shard in shards)
        out = work / "out.zarr"
        more = {} if arguments.workers is None else {"workers": arguments.workers}
        roads: dict[str, Callable[[], object]] = {
            "cp and sync": lambda: plain_copy(shards, out),
            "writing and syncing alone": lambda: write(out, size),
            "copy_cache": lambda: lc.copy_cache(cache, out),
            "transcode, all as it is": lambda: lc.transcode(cache, out, **more),
            "transcode --layers 4": lambda: lc.transcode(cache, out, layers=4, **more),
            "transcode --precision int8": lambda: lc.transcode(cache, out, precision="int8", **more),
            "transcode --tokens pooled": lambda: lc.transcode(cache, out, tokens="pooled", **more),
        }
        lc.transcode(cache, out, layers=1)  # what Python imports and libraries set up once is not timed
        shutil.rmtree(out)
        seconds: dict[str, list[float]] = {road: [] for road in roads}
        spent: dict[str, list[float]] = {road: [] for road in roads}
        written: dict[str, int] = {}
        for turn in range(arguments.repeats):
            for road in list(roads)[:: -1 if turn % 2 else 1]:
                for shard in shards:
                    shard.read_bytes()
                os.sync()
                started, cpu = perf_counter(), sum(os.times()[:4])
                roads[road]()
                seconds[road].append(perf_counter() - started)
                spent[road].append(sum(os.times()[:4]) - cpu)  # of cp, too
                written[road] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
                shutil.rmtree(out)
                shutil.rmtree(receipts_of(out), ignore_errors=True)
        print(f"{size / 1e9:.2f} GB in {len(shards)} shards, {cache.layout.samples} samples, {os.cpu_count()} cores")
        for road in roads:
            rates = [size / own / 1e9 for own in seconds[road]]
            rate = f"{statistics.median(rates):.2f} ({min(rates):.2f}-{max(rates):.2f}) GB/s"
            cpu = statistics.median(spent[road]) / size * 1e9
            print(f"{road:<32} {rate}, {written[road] / 1e9:.2f} GB written, {cpu:.2f} s of CPU a GB", flush=True)


def made(path: Path, gigabytes: float) -> lc.ActivationCache:
    """Write a complete bfloat16 cache of random values, as an extraction would."""
    precision = get_precision("bfloat16")
    torch.manual_seed(0)
    values = torch.randn(BATCH, LAYERS, TOKENS, WIDTH).bfloat16().view(torch.uint8).numpy()
    samples = int(gigabytes * 1e9 / values[0].nbytes)
    layout = plan_layout(samples=samples, layers=LAYERS, tokens=TOKENS, columns=WIDTH, itemsize=precision.itemsize)
    spec = {"size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    manifest = Manifest(
        fields={
            "backbone": {"name": "vit_s", "weights": "random"},
            "input": spec | {"crop_mode": "center", "frames": 1, "stride": 1},
            "tap": "block",
            "layers": list(range(1, LAYERS + 1)),
            "embedding": False,
            "precision": "bfloat16",
            "compute": "bfloat16",
            "dataset": {"name": "random", "split": "train", "fingerprint": "random"},
            "sampling": {"seed": 0, "limit": None},
            "views": {"count": 1, "augment": None, "clips": 1},
        },
        tokens={"total": TOKENS, "prefix": 1, "grid": [16, 16]},
        width=WIDTH,
        depth=LAYERS,
        classes=["one"],
        tail=tail_of_pooled(WIDTH, 2),  # reads the class token as it is
        software={},
        encoding=precision.fit([], tokens=TOKENS, prefix=1).describe() | {"compressed": None},
    )
    labels, ids = np.zeros(samples, dtype=np.int64), [f"{row:07d}" for row in range(samples)]
    encoding = precision.fit([], tokens=TOKENS, prefix=1)
    with (
        lock_cache(path) as lock,
        CacheWriter.create(lock, manifest, layout, encoding, labels=labels, ids=ids, tail={}) as writer,
    ):
        for row in range(samples):
            writer.append(row, pack(values[row % BATCH], layout))
        return writer.finish()


def plain_copy(shards: list[Path], out: Path) -> None:
    """Copy files with cp, and sync them."""
    out.mkdir()
    subprocess.run(["cp", *map(str, shards), str(out)], check=True)
    for path in out.iterdir():
        sync(path)


def write(out: Path, size: int) -> None:
    """Write as many bytes from memory, and sync them."""
    out.mkdir()
    with open(out / "bytes", "wb", buffering=0) as file:
        for at in range(0, size, len(NOISE)):
            file.write(NOISE[: size - at])
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
