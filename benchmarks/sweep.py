"""K trials from one pass over a cache, beside K runs of their own, and beside what runs the backbone.

    python benchmarks/sweep.py CACHE [--trials 1 4 16 64] [--rank 16] [--layers all] [--repeats 3] [--peer vit_b]

Trials differ in their rate. An epoch is trained and validated (a tenth is held out); every measurement is a process
of its own, so that its peak memory is its own, and the repeats take turns. With --peer, steps of online LoSA
and of LoRA (PEFT) on that backbone's shape are timed as ``peers.py`` does, and an epoch of as many images is
extrapolated from them: they run the backbone for every image, and a sweep of K of them does so K times.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from peak import peak_gigabytes
from peers import measure as measure_peer

from losa_cache import TrainConfig, open_cache
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import machine
from losa_cache.sweep.engine.cohort import Cohort
from losa_cache.train.evaluate import evaluate
from losa_cache.train.loop import make_optimizer, train_epoch
from losa_cache.train.placement import Placement
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import from_cache

ALONE = 0
PEERS = ("LoSA, all layers", "LoRA")  # online
BATCH = 32  # of their steps


def epoch(path: str, trials: int, rank: int, layers: str) -> dict[str, float]:
    """Time the second epoch of so many trials together, or of one as ``losa-cache train`` runs it."""
    keep_freed_memory()
    cache, placement = open_cache(path), Placement.choose()
    base = TrainConfig(rank=rank, layers=layers, epochs=3)
    data = from_cache(cache, base, placement, passes=3)
    rates = np.geomspace(1e-4, 1e-2, max(1, trials))
    configs = [replace(base, lr=float(rate)) for rate in rates]
    adapters = [new_adapter(cache.manifest, data.tail, config).to(data.device) for config in configs]
    if trials == ALONE:
        optimizer, autocast = make_optimizer(adapters[0], base), data.autocast

        def run(number: int) -> None:
            chosen = data.chosen
            train_epoch(adapters[0], optimizer, data.source, chosen.train, base, epoch=number, autocast=autocast)
            task, held_out, size = data.task, chosen.held_out, base.batch_size
            evaluate(adapters[0], data.plain, held_out, task=task, batch_size=size, autocast=autocast)
    else:
        cohort = Cohort(range(trials), configs, adapters, data)

        def run(number: int) -> None:
            cohort.run_epoch()

    run(0)
    started = perf_counter()
    run(1)
    seconds = perf_counter() - started
    data.source.close()
    return {"seconds": seconds, "peak_gb": peak_gigabytes(), "images": len(data.chosen.train)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("--trials", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", help="vit_s, vit_b, ...: time online LoSA and LoRA, too")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(epoch(arguments.cache, arguments.one, arguments.rank, arguments.layers)))
        return
    counts = [ALONE, *arguments.trials]
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for _ in range(arguments.repeats):
        for count, results in runs.items():
            command = [sys.executable, __file__, arguments.cache, "--one", str(count)]
            command += ["--rank", str(arguments.rank), "--layers", arguments.layers]
            results.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    images = runs[ALONE][0]["images"]
    print(f"{machine()}; {Path(arguments.cache).name}, {images:.0f} images, rank {arguments.rank}")
    alone = statistics.median(run["seconds"] for run in runs[ALONE])
    for count, results in runs.items():
        seconds = statistics.median(run["seconds"] for run in results)
        times = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(results, runs[ALONE], strict=True))
        memory = statistics.median(run["peak_gb"] for run in results)
        name = "a run of its own" if count == ALONE else f"{count:3} trials together"
        text = f"  {name:<20}{seconds:7.2f} s an epoch, {times:5.2f} x, {memory:.1f} GB"
        print(text + (f"; one by one {count * alone:7.2f} s" if count > 1 else ""))
    if arguments.peer:
        for method in PEERS:
            rate = BATCH / measure_peer(method, arguments.peer, BATCH, 3)["seconds"]
            name = f"{method}, online"
            print(f"  {name:<24}{images / rate:7.2f} s an epoch of ONE trial (extrapolated from {rate:.1f} images/s)")


if __name__ == "__main__":
    main()
