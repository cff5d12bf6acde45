"""One backbone, many adapters: what 1, 10 and 100 of them cost beside the backbone alone, in time and in memory.

    python benchmarks/adapters.py [--backbone vit_b] [--rank 8] [--batch 16] [--counts 1 10 100]

Weights are random: the speed does not depend on them. Times are medians of the rounds; in each round all counts are
timed in turn, so that a slower minute of the machine falls on all of them. Memory is what the process has more at its
peak during a pass than before it, by a thread that reads it; beside it stand the bytes of the adapters themselves and
of a block output.
"""

import argparse
import threading
from dataclasses import asdict
from functools import partial
from statistics import median

import torch
from made_up import random_backbone
from timing import Work, free_memory, in_turn, synchronize

import losa_cache as lc
from losa_cache.backbone import Backbone
from losa_cache.machine.device import choose_device, machine
from losa_cache.points import input_points
from losa_cache.sidenet.adapter import Adapter
from losa_cache.train.trained_adapter import TrainedAdapter

CLASSES = 10


def made_up(backbone: Backbone, seed: int, *, rank: int, head: str, precision: str) -> TrainedAdapter:
    """Make an adapter of random weights."""
    layers = list(range(1, backbone.depth + 1))
    points = input_points("block", layers, start="output")
    arguments = {
        "side": "losa", "depth": len(layers), "tokens": backbone.tokens, "width": backbone.width, "rank": rank,
        "classes": CLASSES, "seed": seed, "head": head, "points": len(points),
    }  # fmt: skip
    adapter = Adapter(**arguments, tail=backbone.tail)
    for parameter in adapter.parameters():
        if parameter.requires_grad or parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    fields = {
        "backbone": {"name": backbone.name, "weights": backbone.weights},
        "input": asdict(backbone.input),
        "precision": precision,
    }
    config = {"adapter": arguments, "layers": layers, "tap": "block", "start": "output", "cache": {"fields": fields}}
    return TrainedAdapter(adapter, points, config | {"classes": [f"class {n}" for n in range(CLASSES)]}).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--head", default="all", choices=("all", "last"))
    parser.add_argument(
        "--precision", default="bfloat16", help="Precision of the caches that the adapters were trained from."
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = choose_device()
    backbone = random_backbone(arguments.backbone, device)
    pixels = torch.randint(0, 256, (arguments.batch, *backbone.input.shape), dtype=torch.uint8)
    compute = backbone.compute_dtype(arguments.precision)
    block = arguments.batch * backbone.tokens * backbone.width * compute.itemsize
    options = {"rank": arguments.rank, "head": arguments.head, "precision": arguments.precision}
    models = {}
    for count in arguments.counts:
        adapters = {str(seed): made_up(backbone, seed, **options) for seed in range(count)}
        models[f"{count} adapters"] = lc.AdaptedModel(backbone, adapters)
    ways: dict[str, Work] = {"backbone alone": partial(run_alone, backbone, pixels, compute)}
    ways |= {name: partial(model, pixels) for name, model in models.items()}
    memory = {name: added_memory(way, device) for name, way in ways.items()}
    times = {name: median(found) for name, found in in_turn(ways, repeats=arguments.rounds).items()}
    print(f"{machine()}; {arguments.backbone}, batch {arguments.batch}, rank {arguments.rank}, head {arguments.head}")
    print(f"matrix products in {compute}; a block output: {block / 1e6:.1f} MB")
    first = times[next(iter(models))]
    for name, seconds in times.items():
        own = sum(map(bytes_of, models[name].adapters.values())) if name in models else 0
        print(
            f"{name}: {seconds / arguments.batch * 1e3:.1f} ms an image, {seconds / first:.2f} x of the first; "
            f"{memory[name] / 1e6:.0f} MB more at the peak; the adapters' own {own / 1e6:.0f} MB"
        )


def run_alone(backbone: Backbone, pixels: torch.Tensor, compute: torch.dtype) -> None:
    """Run the backbone, and drop what it gives."""
    backbone.run(pixels.to(backbone.device), ["block.1"], lambda at, value: None, compute=compute)


def bytes_of(adapter: TrainedAdapter) -> int:
    """Count the bytes of what was trained."""
    return sum(tensor.nbytes for tensor in adapter.adapter.trained_state().values())


def added_memory(way: Work, device: torch.device) -> float:
    """Run once to warm up, then once more; give the bytes that it took at most beyond what was there before."""
    way()
    synchronize()
    free_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    seen, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_resident())

    thread = threading.Thread(target=watch)
    thread.start()
    way()
    done.set()
    thread.join()
    return max(seen) - seen[0]


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


if __name__ == "__main__":
    main()
