"""What a million samples cost beside their block outputs: every stage of a cache, in seconds and in bytes a sample.

    python benchmarks/million.py [FOLDER] [--rows 1000000] [--shards 13500]

The rows are those of ``scale.py``, 64 bytes each, so that nothing but their number counts; 13,500 shards are those of
a million images of ViT-B (all blocks in bfloat16). FOLDER holds about 400 MB until the end. Every stage runs in a
process of its own, on this cache and on one of 4,000 rows in one shard. ``seconds`` go by the clock from the start of
the process to the end of the stage, imports among them, and ``cpu`` is its processor time. ``grows`` is the peak
memory above that of the small cache, in bytes a sample. Both are the least of ``--rounds``.

Training is measured up to its first step, streamed from the disk: so it reads one batch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time, time
from typing import Any

from peak import peak_gigabytes

SMALL = 4000  # rows of the cache from which the others are told apart
RUN = "run"


def opened(path: Path) -> None:
    from losa_cache import open_cache

    open_cache(path)


def inspected(path: Path) -> None:
    from losa_cache.cache.inspect import inspect_cache

    inspect_cache(path)


def planned(path: Path) -> None:
    """Order the samples and describe the cache, as an extraction begins."""
    from scale import CPU, noise, tiny_backbone

    from losa_cache.inputs import open_inputs

    open_inputs(tiny_backbone(), noise(_rows(path)), precision="bfloat16", device=CPU)


def resumed(path: Path) -> None:
    """Run the extraction again: every shard is there."""
    from scale import noise, tiny_backbone

    from losa_cache.extract.extract import extract

    extract(tiny_backbone(), noise(_rows(path)), precision="bfloat16", device="cpu", out=path)


def checked(path: Path) -> None:
    """Prepare to verify, but verify one shard alone."""
    from losa_cache.cache.health import examine
    from losa_cache.cache.location import locate

    examine(locate(path), shards=[0])


class FirstStepError(Exception):
    """It is done."""


def _first_step(path: Path, **options: Any) -> None:
    from losa_cache.train.train import train

    def stop(epochs: float) -> None:
        raise FirstStepError

    with tempfile.TemporaryDirectory() as work:
        try:
            train(path, out=Path(work) / RUN, device="cpu", batch_size=256, residency="disk", progress=stop, **options)
        except FirstStepError:
            return
    raise AssertionError("no step")


def probe_begun(path: Path) -> None:
    """Choose the images of a probe."""
    import torch

    from losa_cache import open_cache
    from losa_cache.probe.images import choose_images
    from losa_cache.train.config import TrainConfig

    choose_images(open_cache(path), None, TrainConfig(side="linear"), torch.device("cpu"))


def ordered(path: Path) -> None:
    """Order an epoch, every sample once, and one in which classes come equally often."""
    from losa_cache import open_cache
    from losa_cache.train.sampler import balanced_weights, epoch_requests

    cache = open_cache(path)
    epoch_requests(cache.samples, batch_size=256, seed=0, epoch=0)
    epoch_requests(cache.samples, batch_size=256, seed=0, epoch=0, weights=balanced_weights(cache.labels))


def targets_added(path: Path) -> None:
    """Add a column of numbers from a CSV file."""
    from losa_cache.targets.add import add_targets

    add_targets(path, path.parent / f"{path.stem}.csv", name="ages")


def evaluated(path: Path) -> None:
    from losa_cache.train.evaluate_run import evaluate_run

    evaluate_run(path.parent / RUN, cache=path, device="cpu")


def index_of_predictions(path: Path) -> None:
    """Find which samples a prediction has still to answer."""
    from losa_cache import open_cache
    from losa_cache.apply.predict.known import Known
    from losa_cache.apply.predict.predict import unanswered

    unanswered(open_cache(path), Known())


STAGES: dict[str, Callable[[Path], None]] = {
    "extract: order and describe": planned,
    "extract again: all shards done": resumed,
    "open": opened,
    "inspect": inspected,
    "verify: before the shards": checked,
    "train --side linear: first step": lambda path: _first_step(path, side="linear"),
    "train --side losa: first step": lambda path: _first_step(path, rank=2),
    "probe: images chosen": probe_begun,
    "two epochs ordered": ordered,
    "predict: which are new": index_of_predictions,
    "eval": evaluated,
    "targets: a column of numbers": targets_added,
}


def _rows(path: Path) -> int:
    return int(path.stem)


def write_column(path: Path) -> None:
    """Write a table of one number for each sample."""
    from scale import noise

    rows = _rows(path)
    with open(path.parent / f"{path.stem}.csv", "w") as file:
        file.write("id,age\n")
        file.writelines(f"{name},{number % 97}.5\n" for number, name in enumerate(noise(rows).ids))


def train_run(path: Path) -> None:
    """Train a run to be evaluated, on a few samples."""
    from losa_cache.train.train import train

    train(path, out=path.parent / RUN, device="cpu", rank=2, epochs=1, limit=SMALL // 2)


def measure(stage: str, path: Path) -> dict[str, float]:
    """Run one stage in a process of its own."""
    started = time()
    command = [sys.executable, __file__, str(path), "--one", stage]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{stage}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": found["ended"] - started, "cpu": found["cpu"], "bytes": found["bytes"]}


def files_beside(path: Path) -> dict[str, Any]:
    """Count the files of a cache but its shards, and their bytes."""
    receipts = path.with_name(path.name + ".receipts")
    kinds: dict[str, list[int]] = {}
    for folder, name in ((path, "metadata"), (receipts / "core", "copy of the metadata"), (receipts, "receipts")):
        for file in folder.rglob("*"):
            inside = file.relative_to(folder)
            if not file.is_file() or file.name.startswith("c.") or (folder == receipts and inside.parts[0] == "core"):
                continue
            kinds.setdefault(inside.parts[0] if len(inside.parts) > 1 else name, []).append(file.stat().st_size)
    return {name: {"files": len(sizes), "bytes": sum(sizes)} for name, sizes in kinds.items()}


def main() -> None:
    """Measure every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=13_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="stages whose names contain this")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        STAGES[given.one](given.folder)
        print(json.dumps({"ended": time(), "cpu": process_time(), "bytes": peak_gigabytes() * 1e9}))
        return
    from scale import make

    from losa_cache.machine.device import machine

    print(machine())
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        os.environ["LOSA_CACHE_HOME"] = str(Path(work) / "home")
        small, large = (Path(work).resolve() / f"{rows}.zarr" for rows in (SMALL, given.rows))
        make(small, SMALL, 1)
        make(large, given.rows, given.shards)
        train_run(small)
        for path in (small, large):
            write_column(path)
        print(json.dumps({"files": files_beside(large)}), flush=True)
        for stage in STAGES:
            if given.only and given.only not in stage:
                continue
            least = {}
            for path in (small, large):
                rounds = [measure(stage, path) for _ in range(given.rounds)]
                least[path] = {name: min(one[name] for one in rounds) for name in rounds[0]}
            fixed, whole = least[small], least[large]
            print(
                json.dumps(
                    {
                        "stage": stage,
                        "seconds": round(whole["seconds"], 2),
                        "cpu": round(whole["cpu"], 2),
                        "of these for any cache": round(fixed["seconds"], 2),
                        "peak_mb": round(whole["bytes"] / 1e6),
                        "grows": round((whole["bytes"] - fixed["bytes"]) / given.rows),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
