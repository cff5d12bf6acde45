"""What a budget of device memory costs: peak memory and speed of an extraction, with and without one.

    python benchmarks/budget.py [--backbone vit_l] [--budget 200MB --budget 400MB] [--images 64] [--repeats 3]

Random weights in a safetensors file, random images. On a CPU the device's memory is the host's: the budget is only a
part of the process's peak, beside the interpreter with its libraries (shown), images, and results that wait to be
written. Every measurement is a process of its own; within a repeat all are made in turn. Prints medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from made_up import noise_images
from peak import peak_gigabytes
from safetensors.torch import save_file

from losa_cache import load_backbone
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.machine.device import machine

NO_BUDGET = "none"
Figures = dict[str, float]


def measure(arguments: argparse.Namespace, budget: str) -> Figures:
    """Extract four layers in bfloat16."""
    samples, meter = noise_images(arguments.images), Meter()
    before = peak_gigabytes()
    with tempfile.TemporaryDirectory(dir=arguments.work) as out:
        extract(
            arguments.backbone,
            samples,
            weights=arguments.work / "weights.safetensors",
            layers=4,
            out=Path(out) / "cache.zarr",
            batch_size=arguments.batch,
            max_device_memory=None if budget == NO_BUDGET else budget,
            meter=meter,
        )
    figures = {"images_per_second": meter.images / meter.seconds, "peak_gb": peak_gigabytes(), "before_gb": before}
    if torch.cuda.is_available():
        figures["device_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_l")
    parser.add_argument("--budget", action="append", help="default: 200MB and 400MB")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measure(arguments, arguments.budget[0])))
        return
    budgets = [NO_BUDGET, *(arguments.budget or ["200MB", "400MB"])]
    shared = ["--backbone", arguments.backbone, "--images", str(arguments.images), "--batch", str(arguments.batch)]
    with tempfile.TemporaryDirectory(dir=".") as work:
        weights = load_backbone(arguments.backbone, weights="random").model.state_dict()
        save_file(weights, Path(work) / "weights.safetensors")
        size = sum(tensor.nbytes for tensor in weights.values())
        del weights
        found: dict[str, list[Figures]] = {budget: [] for budget in budgets}
        for _ in range(arguments.repeats):
            for budget in budgets:
                command = [sys.executable, __file__, *shared, "--work", work, "--budget", budget]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                found[budget].append(json.loads(done.stdout))
    print(f"{arguments.backbone}, {size / 1e9:.2f} GB; {arguments.images} images, {arguments.batch} a batch")
    print(f"{machine()}, medians of {arguments.repeats}")
    plain = statistics.median(one["images_per_second"] for one in found[NO_BUDGET])
    for budget, runs in found.items():
        middle = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        speed = middle.pop("images_per_second")
        memory = ", ".join(f"{name} {value:.2f}" for name, value in middle.items())
        print(f"  budget {budget:<8} {speed:.2f} images/s ({speed / plain:.2f}), {memory}")


if __name__ == "__main__":
    main()
