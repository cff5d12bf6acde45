"""What it costs to share an extraction, and what two processes gain over one.

    python benchmarks/parts.py [--images 512] [--backbone vit_s] [--repeats 5]

Random weights and noise, bfloat16, into a temporary folder. Two comparisons, in turn, medians:

* one process that writes the cache alone, and one that claims its units (`part="auto"`), each with one thread;
* one process with two threads, and two processes with one thread each.

Processes are forked from one that has imported everything and made the backbone. ``cpu`` is the time of all threads and
processes, which other programs on the machine disturb less.
"""

import argparse
import os
import resource
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from made_up import noise_images, random_backbone

from losa_cache.backbone import Backbone
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.stores.local import LocalPath
from losa_cache.data.samples import Samples
from losa_cache.extract.extract import extract

Inputs = tuple[Backbone, Samples]
SHARD_BYTES = 64 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--backbone", default="vit_s")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    ways: dict[str, tuple[Sequence[str | None], int]] = {
        "alone, 1 thread": ([None], 1),
        "part auto, 1 thread": (["auto"], 1),
        "alone, 2 threads": ([None], 2),
        "2 processes of 1 thread": (["auto", "auto"], 1),
    }
    torch.set_num_threads(1)  # a team of threads would not survive the forks
    inputs = random_backbone(given.backbone, torch.device("cpu")), noise_images(given.images)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOSA_CACHE_HOME"] = str(Path(folder) / "home")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for repeat in range(given.repeats + 1):
            for name, (parts, threads) in ways.items():
                took = run(LocalPath(folder) / "c.zarr", parts, threads, inputs)
                if repeat:  # the first warms up
                    found[name].append(took)
    print(f"{given.backbone}, {given.images} images, medians of {given.repeats}:")
    for name, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:25s} {wall:7.2f} s  {given.images / wall:7.1f} images/s  {cpu:7.2f} s of cpu")
    for name, base in (("part auto, 1 thread", "alone, 1 thread"), ("2 processes of 1 thread", "alone, 2 threads")):
        ratios = [
            [own / other for own, other in zip(*pair, strict=True)]
            for pair in zip(found[name], found[base], strict=True)
        ]
        wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"{name} / {base}: time {wall:.3f}, cpu {cpu:.3f}")


def run(path: LocalPath, parts: Sequence[str | None], threads: int, inputs: Inputs) -> tuple[float, float]:
    """Extract a cache by so many processes; give the seconds, and those of all processors."""
    for place in (path, receipts_of(path)):
        shutil.rmtree(place, ignore_errors=True)
    started, before = perf_counter(), _cpu()
    pids = [pid for part in parts if (pid := _child(path, part, threads, inputs))]
    for pid in pids:
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("a process failed")
    return perf_counter() - started, _cpu() - before


def _child(path: LocalPath, part: str | None, threads: int, inputs: Inputs) -> int:
    if pid := os.fork():
        return pid
    torch.set_num_threads(threads)
    extract(*inputs, out=path, part=part, shard_bytes=SHARD_BYTES, batch_size=16, workers=threads, device="cpu")
    os._exit(0)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
