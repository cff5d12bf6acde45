"""Tile sizes of the side network's Triton kernels on this GPU.

    python benchmarks/tiles.py [--shape vit_b vit_h] [--rank 16] [--trials 1 16] [--batch-size 256] [--processes 8]

Every kernel of a step is timed alone with each tile: the streams over all block outputs of a kind in GB/s, the kernel
that follows the states through all layers in microseconds, forth and back. Processes compile at the same time;
they take turns at the GPU. A line a kernel: its fastest tiles first. The winners belong into
``losa_cache/sidenet/kernels/tiles.py``.
"""

import argparse
import fcntl
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from side import SHAPES
from torch import Tensor

from losa_cache.sidenet.chain import Chain, Weights
from losa_cache.sidenet.fast import no_cross
from losa_cache.sidenet.kernels.backend import WORD
from losa_cache.sidenet.kernels.states import follow
from losa_cache.sidenet.kernels.stream import correlate, project
from losa_cache.sidenet.kernels.tiles import Tile, Tiles, tiles_for
from losa_cache.sidenet.products import CHANNEL, TOKEN
from losa_cache.sidenet.readout import First

REPEATS = 7
GRIDS: dict[str, dict[str, list[int]]] = {
    "project_channel": {"tokens": [64, 128, 256], "step": [64, 128], "num_warps": [4, 8], "num_stages": [3]},
    "project_token": {"channels": [64, 128, 256], "step": [32, 64], "num_warps": [4, 8], "num_stages": [3]},
    "correlate_channel": {"channels": [64, 128, 256], "step": [32, 64], "num_warps": [4, 8], "num_stages": [3]},
    "correlate_token": {"tokens": [32, 64, 128], "step": [64, 128], "num_warps": [4, 8], "num_stages": [3]},
    "follow": {
        "lines": [64],
        "step": [128, 256],
        "columns": [256, 512],
        "inner_step": [32, 64],
        "num_warps": [4, 8],
        "num_stages": [2, 3],
    },
}
Job = tuple[str, int, int, int, str, int, Tile]


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """List what is timed."""
    for shape, trials, name in itertools.product(arguments.shape, arguments.trials, arguments.kernel):
        grid = GRIDS[name]
        for values in itertools.product(*grid.values()):
            for rows in [64] if trials == 1 or name == "follow" else [64, 128]:
                yield (
                    shape,
                    arguments.rank,
                    trials,
                    arguments.batch_size,
                    name,
                    rows,
                    dict(zip(grid, values, strict=True)),
                )


def work_of(job: Job) -> tuple[Callable[[], object], int]:
    """Build one job: the work, and the bytes that it streams (none for the states)."""
    shape, rank, trials, batch, name, rows, tile = job
    depth, n, d, _ = SHAPES[shape]
    given: dict[str, Any] = {name: tile}
    tiles = replace(tiles_for(trials * rank), rows=rows, **given)
    kind = TOKEN if name.endswith("token") else CHANNEL
    layers = depth // 2
    like: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
    if name == "follow":
        return _both_ways(depth, rank, trials, batch, n, d, tiles, like), 0
    blocks = [torch.randn(batch, n, d, **like) for _ in range(layers)]
    filled = -(-n // WORD) * WORD
    m, q = (d, filled) if kind == CHANNEL else (filled, d)
    nbytes = sum(block.nbytes for block in blocks)
    if name.startswith("project"):
        weight = torch.randn(trials, layers * rank, m, **like)
        return lambda: project(kind, blocks, blocks[-1], weight, filled, tiles), nbytes
    states = torch.randn(trials, layers * rank, batch, q, **like)
    return lambda: correlate(kind, blocks, blocks[-1], states, filled, tiles), nbytes


def _both_ways(
    depth: int, rank: int, trials: int, batch: int, n: int, d: int, tiles: Tiles, like: dict[str, Any]
) -> Callable[[], object]:
    """Build the way forth and back through all states."""
    rows, n = depth // 2 * rank, -(-n // WORD) * WORD
    chain = Chain(tuple(at % 2 for at in range(depth)), rank, First(n, 1), torch.bfloat16, added=True)

    def random(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(trials, rows, *shape, **like) / d, torch.randn(trials, rows, *shape, **like) / d

    def mixed(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(trials, rows, *shape, n, **like) / d, torch.randn(trials, rows, *shape, d, **like) / d

    shift, (inner, states, grads) = mixed(), (mixed(batch) for _ in range(3))
    w = Weights(mixed()[::-1], mixed()[::-1], random(rows), shift)
    cross = no_cross(chain, states)

    def work() -> None:
        follow(chain, inner, states, cross, w, tiles)
        follow(chain, grads, grads, cross, w, tiles, inner)

    return work


def measure(job_lock: tuple[Job, str]) -> dict[str, Any]:
    """Compile one job beside other processes, then time it alone."""
    job, lock = job_lock
    found: dict[str, Any] = {"key": " ".join(map(str, job[:5])), "tile": job[6] | {"rows": job[5]}}
    try:
        work, nbytes = work_of((*job[:3], 16, *job[4:]))  # a batch that is compiled for alike
        work()
        torch.cuda.synchronize()
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            work, nbytes = work_of(job)
            work()
            times = []
            for _ in range(REPEATS):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                work()
                end.record()
                end.synchronize()
                times.append(1e3 * start.elapsed_time(end))
            us = sorted(times)[REPEATS // 2]
            del work
            torch.cuda.empty_cache()
        found |= {"us": round(us, 1)} | ({"gb_per_second": round(nbytes / us / 1e3)} if nbytes else {})
    except Exception as error:  # a tile that does not fit
        found |= {"error": f"{type(error).__name__}: {error}"[:80]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["vit_b", "vit_h"])
    parser.add_argument("--kernel", nargs="*", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--trials", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--show", type=int, default=4, help="how many of the fastest tiles are shown")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU was found, and the kernels need one.")
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        lock = str(Path(folder) / "lock")
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            for found in pool.imap_unordered(measure, [(job, lock) for job in jobs(arguments)]):
                results.setdefault(found.pop("key"), []).append(found)
    for key, tried in results.items():
        best = sorted((found for found in tried if "us" in found), key=lambda found: found["us"])[: arguments.show]
        failed = sum("error" in found for found in tried)
        print(json.dumps({"kernel": key, "tried": len(tried), "failed": failed, "fastest": best}), flush=True)


if __name__ == "__main__":
    main()
