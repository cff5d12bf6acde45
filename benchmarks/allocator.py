"""What keeping freed memory is worth: a plain LoSA step and a forward pass, with and without, in turn.

python benchmarks/allocator.py [--repeats 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from peak import peak_gigabytes

from losa_cache import LoSA, load_backbone
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.points import tapped_points

BATCH, STEPS = 64, 4


def losa_step() -> Callable[[], object]:
    """Build a forward and backward pass of plain LoSA at ViT-B shape, rank 16, bfloat16 blocks."""
    blocks = [torch.randn(BATCH, 197, 768).bfloat16() for _ in range(12)]
    side = LoSA(depth=12, tokens=197, width=768, rank=16)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = side(blocks).mean(1).square().sum()
        loss.backward()

    return step


def forward() -> Callable[[], object]:
    """Build a ViT-B forward pass that keeps all block outputs."""
    backbone = load_backbone("vit_b", weights="random")
    pixels = torch.randint(0, 256, (BATCH, *backbone.input.size), dtype=torch.uint8)
    points = tapped_points("block", range(1, 13))
    return lambda: backbone.outputs(pixels, points, compute=torch.bfloat16)


WORK = {"losa step": losa_step, "forward": forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, keep = arguments.one
        if keep == "keep":
            keep_freed_memory()
        work = WORK[name]()
        work()
        started = perf_counter()
        for _ in range(STEPS):
            work()
        peak = peak_gigabytes()
        print(json.dumps([BATCH * STEPS / (perf_counter() - started), peak]))
        return
    for name in WORK:
        found: dict[str, list[list[float]]] = {"keep": [], "default": []}
        for _ in range(arguments.repeats):
            for keep, results in found.items():
                command = [sys.executable, __file__, "--one", name, keep]
                results.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        rates = {k: statistics.median(r[0] for r in v) for k, v in found.items()}
        peaks = {k: statistics.median(r[1] for r in v) for k, v in found.items()}
        print(f"{name}: {rates['default']:.1f} -> {rates['keep']:.1f} images/s", end=" ")
        print(f"({rates['keep'] / rates['default']:.2f} x), peak {peaks['default']:.2f} -> {peaks['keep']:.2f} GB")


if __name__ == "__main__":
    main()
