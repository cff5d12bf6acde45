"""The whole idea in two minutes, on the embedded default: real scans, no download, no GPU.

    python scripts/quickstart.py

Runs the command line as a user would, in ./.quickstart (emptied first), then times epochs with and without the cache in
one process, in turn.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from losa_cache import TrainConfig, open_cache
from losa_cache.inputs import open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device
from losa_cache.train.cached import CachedSource
from losa_cache.train.loop import make_optimizer, train_epoch
from losa_cache.train.online import OnlineSource
from losa_cache.train.placement import Placement
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import frozen_tail, used_points

CLI = str(Path(sys.executable).with_name("losa-cache"))
SPLITS, SIDES, SOURCES = ("train", "test"), ("linear", "losa"), ("cached", "online")
TIMED_EPOCHS = 5
console = Console(highlight=False, width=110)


def main() -> None:
    started = perf_counter()
    folder = Path(".quickstart")
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["LOSA_CACHE_HOME"] = str(folder)

    console.print(
        "\n[bold]1. The frozen backbone runs once[/] (vit_digits was pretrained on digits 0-4; these are 5-9)"
    )
    caches = {
        split: losa_cache("extract", "--backbone", "vit_digits", "--dataset", "digits", "--split", split)
        for split in SPLITS
    }
    console.print("\n[bold]2. Side networks train from the cache[/], without the backbone")
    tested: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    for side in SIDES:
        run = str(folder / "runs" / side)
        trained[side] = losa_cache("train", "--side", side, "--rank", "16", "--val-fraction", "0", "--out", run)
        tested[side] = losa_cache("eval", run)

    console.print("\n[bold]3. The same epoch with and without the cache[/]")
    seconds = time_epochs(caches["train"]["cache"])

    table = Table(title=f"digits 5-9: {tested['losa']['samples']} held-out images, never trained on")
    for column in ("", "linear probe", "LoSA, rank 16"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("top-1 on held-out images", *(f"{tested[side]['top1']:.1f} %" for side in SIDES))
    table.add_row("trained parameters (side + classifier)", *(parameters(trained[side]) for side in SIDES))
    for source in SOURCES:
        table.add_row(f"seconds per epoch, {source}", *(f"{seconds[side, source]:.3f}" for side in SIDES))
    table.add_row("online / cached", *(f"{seconds[side, 'online'] / seconds[side, 'cached']:.1f} x" for side in SIDES))
    table.add_row("cache: train + test", "", " + ".join(caches[split]["size"] for split in SPLITS))
    console.print()
    console.print(table)
    console.print(
        "This backbone is tiny, so an epoch without the cache is cheap here; the gain grows with the backbone.\n"
        f"Everything is in {folder}; done in {perf_counter() - started:.0f} s. On your own data:\n\n"
        "  losa-cache extract --backbone vit_b --dataset folder --data-dir DIR      # DIR/train/<class>/*.jpg\n"
        "  losa-cache extract --backbone vit_b --dataset folder --data-dir DIR --split test\n"
        "  losa-cache train --rank 16 && losa-cache eval runs/folder-losa-1\n"
    )


def losa_cache(*arguments: str) -> dict[str, Any]:
    """Run the command line, showing the command, and return its JSON."""
    console.print("$ losa-cache " + " ".join(arguments), soft_wrap=True)
    # by line: where this is no terminal, what the commands print must come between what is printed here
    sys.stdout.flush()
    done = subprocess.run([CLI, *arguments, "--json"], stdout=subprocess.PIPE, check=True)  # noqa: S603
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def time_epochs(path: str) -> dict[tuple[str, str], float]:
    """Time epochs of both sides, from the cache and with the backbone, in turn; return the median seconds of each."""
    keep_freed_memory()
    cache, device = open_cache(path), choose_device()
    inputs = open_inputs("vit_digits", "digits", precision=cache.manifest.precision, device=device)
    autocast = Placement(device).autocast(cache.manifest.precision)
    configs = {side: TrainConfig(side=side, rank=16) for side in SIDES}
    sources: dict[tuple[str, str], CachedSource | OnlineSource] = {}
    for side, config in configs.items():
        points = used_points(cache.manifest.fields["tap"], cache.manifest.layers, config)
        sources[side, "cached"] = CachedSource(cache, points, device)
        sources[side, "online"] = OnlineSource(
            inputs, points, cache.encoding(), cache.manifest.points, workers=os.cpu_count() or 1
        )
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in sources}
    for epoch in range(TIMED_EPOCHS + 1):  # the first warms up
        for (side, name), source in sources.items():
            adapter = new_adapter(cache.manifest, frozen_tail(cache), configs[side]).to(device)
            optimizer = make_optimizer(adapter, configs[side])
            started = perf_counter()
            train_epoch(adapter, optimizer, source, cache.samples, configs[side], epoch=epoch, autocast=autocast)
            seconds[side, name].append(perf_counter() - started)
    for source in sources.values():
        source.close()
    return {key: statistics.median(times[1:]) for key, times in seconds.items()}


def parameters(report: dict[str, Any]) -> str:
    counts = report["parameters"]
    return f"{counts['side']:,} + {counts['classifier']:,}"


if __name__ == "__main__":
    main()
