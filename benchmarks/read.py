"""Reading batches of samples in random order: ours beside its peers, from the page cache and from the disk.

    python benchmarks/read.py [FOLDER] [--samples 512] [--cold-samples 320] [--rounds 5]

FOLDER lies on the disk to measure; at ViT-B's shape 512 samples take 11 GB there until the end (page cache: 8 GB). All
read the same values (``read_stores.py``) into memory, 64 samples at a time; ours uses 2 threads, as training does.
Every reader is a process of its own that lives through all rounds; in a round all take their turn, beginning with
another one each time, over the same fresh permutation. An untimed first pass is checked against the values.

GB are those of the samples in bfloat16, however they are stored. Ratios to the roof are taken round by round. Warm:
``mincore`` finds the pages of the files in memory before each turn. Cold: it finds none, after
``posix_fadvise(POSIX_FADV_DONTNEED)``. Memory is the peak of the resident set, mapped files included; behind it, the
sum over worker processes (memory that they share counts in each).
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from peak import peak_gigabytes
from read_peers import (
    THREADS,
    Hdf5,
    Loaded,
    Memmap,
    PtSamples,
    Reader,
    Rows,
    Sequential,
    Tensorstore,
    Zarr,
    ZarrSamples,
    pt_files,
    shards,
)
from read_stores import BATCH, POINTS, SAMPLE_BYTES, STORES, drop, fill, held, make

from losa_cache import open_cache
from losa_cache.cache.reader import BlockReader
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import machine
from losa_cache.machine.memory import allocate
from losa_cache.sidenet.operand import Block, dense
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource

Figures = dict[str, float]


class Ours:
    """``BlockReader`` into two preallocated buffers in turn.

    Args:
        store: name of the cache.
        checked: open the cache anew for every pass: each chunk's checksum is verified.
        direct: read past the page cache.
    """

    def __init__(self, folder: Path, store: str = "bfloat16", *, checked: bool = False, direct: bool = False) -> None:
        self._cache = open_cache(folder / f"{store}.zarr")
        self.files = shards(folder / f"{store}.zarr")
        self._open = partial(BlockReader, self._cache, POINTS, threads=THREADS, direct=direct)
        self._reader = None if checked else self._open()
        layout, dtype = self._cache.layout, self._cache.precision.stored_dtype
        shape = (2, layout.layers, BATCH, layout.tokens, layout.columns)
        self._buffers = allocate(shape, dtype, torch.device("cpu"))

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Fill one buffer after the other."""
        reader = self._reader or self._open()
        for first in range(0, len(rows), BATCH):
            buffer = list(self._buffers[first // BATCH % 2])
            reader.read(rows[first : first + BATCH], buffer)
            yield buffer
        if self._reader is None:
            reader.close()


class Training:
    """Training's own source: the next batch is read while this one is decoded.

    Args:
        store: name of the cache.
        fold: leave int8 codes as they are, all but those of the last block.
    """

    def __init__(self, folder: Path, store: str, *, fold: bool = False) -> None:
        cache = open_cache(folder / f"{store}.zarr")
        self.files = shards(folder / f"{store}.zarr")
        self._source = CachedSource(cache, POINTS, torch.device("cpu"), rank=16 if fold else 0)

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Yield block outputs as a side network gets them."""
        requests = [Request(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]
        for batch in self._source.batches(requests):
            yield batch.blocks


ROOF, DISK = f"memmap copy, {THREADS} threads", "dd, direct, 4 MiB"
OURS: dict[str, Callable[[Path], Reader]] = {
    "ours": Ours,
    "ours, first pass (checks)": partial(Ours, checked=True),
}
PEERS: dict[str, Callable[[Path], Reader]] = {
    ROOF: Memmap,
    "zarrs": partial(Zarr, zarrs=True),
    "zarr-python": partial(Zarr, zarrs=False),
    "tensorstore": Tensorstore,
    "DataLoader, zarrs": lambda folder: Loaded(ZarrSamples(folder / "bfloat16.zarr"), shards(folder / "bfloat16.zarr")),
    "DataLoader, .pt files": lambda folder: Loaded(PtSamples(folder, mapped=False), pt_files(folder)),
    "DataLoader, .pt files mapped": lambda folder: Loaded(PtSamples(folder, mapped=True), pt_files(folder)),
    "HDF5, 1 thread": Hdf5,
}
WARM: dict[str, Callable[[Path], Reader]] = {"memmap copy, 1 thread": partial(Memmap, threads=1)} | PEERS | OURS
DECODED: dict[str, Callable[[Path], Reader]] = {ROOF: Memmap}
for _store in [name for name in STORES if name != "bfloat16"]:
    DECODED[f"{_store}: read"] = partial(Ours, store=_store)
    DECODED[f"{_store}: read, first pass (checks)"] = partial(Ours, store=_store, checked=True)
    if _store.startswith("int8"):
        DECODED[f"{_store}: read, decode"] = partial(Training, store=_store)
        DECODED[f"{_store}: read, codes"] = partial(Training, store=_store, fold=True)
COLD: dict[str, Callable[[Path], Reader]] = {
    DISK: Sequential,
    f"dd, {THREADS} requests at once": partial(Sequential, threads=THREADS),
    **OURS,
    "ours, direct": partial(Ours, direct=True),
    "ours, direct, first pass (checks)": partial(Ours, direct=True, checked=True),
    **PEERS,
    ROOF: partial(Memmap, keep=False),
}
PARTS: dict[str, tuple[dict[str, Callable[[Path], Reader]], str]] = {
    "warm": (WARM, ROOF),
    "decoded": (DECODED, ROOF),
    "cold": (COLD, DISK),
}


def serve(pipe: Connection, part: str, name: str, folder: Path) -> None:
    """Be a reader's process: answer each message, the rows of a pass, with its figures; stop at ``None``."""
    keep_freed_memory()  # as training does; here for all
    try:
        reader = PARTS[part][0][name](folder)
    except ImportError as error:
        pipe.send(f"left out: {error}")
        return
    check(reader, folder)
    pipe.send("ready")
    while (rows := pipe.recv()) is not None:
        (drop if part == "cold" else fill)(reader.files)
        before = held(reader.files)
        started = perf_counter()
        for _ in reader(rows):
            pass
        rate = len(rows) * SAMPLE_BYTES / 1e9 / (perf_counter() - started)
        workers = sum(peak_gigabytes(child.pid or 0) for child in multiprocessing.active_children())
        memory = {"peak": peak_gigabytes(), "workers": workers}
        pipe.send({"rate": rate, "before": before, "after": held(reader.files), **memory})


def check(reader: Reader, folder: Path) -> None:
    """Read every row once, and compare two of each batch with the values: equal, or within what int8 loses."""
    rows = np.random.default_rng(1).permutation(len(np.load(folder / "plain.npy", mmap_mode="r")))
    for at, batch in enumerate(reader(rows)):
        here = rows[at * BATCH : (at + 1) * BATCH]
        for entry in (0, len(here) - 1):
            bits = np.load(folder / "plain.npy", mmap_mode="r")[here[entry]]
            wanted = torch.from_numpy(bits.copy()).view(torch.bfloat16).float()
            found = torch.stack([block[entry] for block in dense(batch)])
            if found.dtype == torch.bfloat16:  # not stored codes
                error = float((found.float() - wanted).norm() / wanted.norm())
                assert error == 0 or (error < 0.02 and isinstance(reader, Training)), f"wrong values: {error}"


def compare(part: str, folder: Path, rows_a_pass: int, rounds: int) -> None:
    """Run all readers of a part, in turn, and print what they took."""
    readers, roof = PARTS[part]
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in readers:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, part, name, folder)).start()
        theirs.close()
        if (answer := pipes[name].recv()) != "ready":
            print(f"{name}: {answer}")
            del pipes[name]
    print(f"\n{part}: {rows_a_pass} samples a pass, load average before {os.getloadavg()[0]:.1f}", flush=True)
    generator, order = np.random.default_rng(0), list(pipes)
    rows = len(np.load(folder / "plain.npy", mmap_mode="r"))
    found: dict[str, list[Figures]] = {name: [] for name in order}
    for turn in range(rounds):
        chosen = generator.permutation(rows)[:rows_a_pass]
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            pipes[name].send(chosen)
            found[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(None)
    report(found, roof)


def report(found: dict[str, list[Figures]], roof: str) -> None:
    """Print a line a reader."""
    print(f"{'':<42}{'GB/s':<20}{'/ ' + roof:<28}{'peak GB':<14}in page cache before, after")
    for name, passes in found.items():
        rates = [figures["rate"] for figures in passes]
        ratios = [rate / limit["rate"] for rate, limit in zip(rates, found[roof], strict=True)]
        last = passes[-1]
        memory = f"{last['peak']:.1f}" + (f" + {last['workers']:.1f}" if last["workers"] else "")
        pages = [statistics.median(figures[when] for figures in passes) for when in ("before", "after")]
        print(
            f"{name:<42}{spread(rates):<20}{spread(ratios):<28}{memory:<14}{pages[0]:.1%}, {pages[1]:.1%}", flush=True
        )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--cold-samples", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        folder = Path(work).resolve()
        make(folder, arguments.samples)
        sizes = {name: sum(path.stat().st_size for path in shards(folder / f"{name}.zarr")) for name in STORES}
        plain = arguments.samples * SAMPLE_BYTES
        print(f"{machine()}; stored: " + ", ".join(f"{name} {size / plain:.2f}" for name, size in sizes.items()))
        for part in arguments.part or PARTS:
            compare(part, folder, arguments.cold_samples if part == "cold" else arguments.samples, arguments.rounds)


if __name__ == "__main__":
    main()
