"""What work by dask.distributed costs: overhead with one worker, and how many units a scheduler can give out.

    python benchmarks/cluster.py [--images 128] [--repeats 3]

The overhead is that of `extract --scheduler` with one worker against plain `extract`, of the same images on the same
machine, in CPU seconds of all threads of the process, since scheduler, worker and client share it. Opening backbone and
data is in both. The rate is that of 64 workers that do nothing, for units of one batch, in jobs as `extract` makes;
64 GPUs at ViT-H/14 (1,160 images/s each, batches of 64) need 1,160 units a second.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from distributed import LocalCluster

import losa_cache as lc
from losa_cache.cluster.at_worker import nothing
from losa_cache.cluster.crew import Crew
from losa_cache.extract.on_cluster import MOST_UNITS, divide

GPUS, NEEDED = 64, 64 * 1160 / 64  # units of 64 images a second
GIVEN: dict[str, Any] = {"backbone": "vit_s", "weights": "random", "dataset": "digits", "batch_size": 16}


def overhead(images: int, repeats: int) -> None:
    """Print what one worker takes beside plain `extract`."""
    took: dict[str, list[float]] = {"plain": [], "dask, one worker": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            protocol="tcp",
            memory_limit=None,
        ) as one,
    ):
        for repeat in range(repeats + 1):
            for name, scheduler in (("plain", None), ("dask, one worker", one.scheduler_address)):
                started = process_time(), perf_counter()
                out = Path(folder) / f"{name}-{repeat}.zarr"
                lc.extract(**GIVEN, limit=images, out=out, workers=1, scheduler=scheduler)
                if repeat:  # the first one warms everything up
                    took[name].append(process_time() - started[0])
    for name, seconds in took.items():
        print(f"{name}: {statistics.median(seconds):.2f} CPU s ({', '.join(f'{one:.2f}' for one in sorted(seconds))})")
    plain, dask = (statistics.median(seconds) for seconds in took.values())
    print(f"overhead: {100 * (dask / plain - 1):.1f} %")


def rate(units: int) -> None:
    """Print how many units a second 64 workers can get."""
    with LocalCluster(
        n_workers=GPUS, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp", memory_limit=None
    ) as many:
        for length in (MOST_UNITS, 1):
            jobs = divide([*range(units * length)], GPUS) if length > 1 else [[unit] for unit in range(units)]
            with Crew(many.scheduler_address, (nothing,), differ=lambda *_: "") as crew:
                crew.wait_for_workers()
                started = perf_counter()
                given = [crew.submit(nothing, name=f"{own[0]}") for own in jobs]
                for _ in crew.as_over(given):
                    pass
                seconds = perf_counter() - started
            done = sum(map(len, jobs))
            print(
                f"jobs of {len(jobs[0])} units: {len(jobs) / seconds:.0f} jobs/s, {done / seconds:.0f} units/s; "
                f"{GPUS} GPUs need {NEEDED:.0f} units/s"
            )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--units", type=int, default=1000)
    options = parser.parse_args()
    rate(options.units)
    overhead(options.images, options.repeats)


if __name__ == "__main__":
    main()
