"""A training step on video, after the paper's Table 2: from a cache, online, and by LoRA inside the backbone.

    pip install peft
    python benchmarks/video.py [--cached vivit_b vivit_h vivit_g vivit_G vivit_e] [--online vivit_s] [--frames 8]
                               [--clips 1] [--steps 2]

Rank 64, 400 classes, random weights, one batch of clips. "Cached" steps have a clip's block outputs in memory, 32
frames, and no backbone anywhere; the others run it on so many frames (on a CPU fewer, or a step takes minutes). Every
measurement is a process of its own. Peak memory is what tensors take at once, as a device would hold them, and what the
device's allocator, or the process beyond its imports, takes for it; running out of it is a result.
"""

import argparse
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from made_up import random_backbone
from peak import peak_gigabytes
from peers import Classifier, autocast, descend
from timing import free_memory, in_turn, medians
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from losa_cache import Adapter, FrozenTail
from losa_cache.cache.precision import get_precision
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, machine
from losa_cache.points import tapped_points
from losa_cache.sidenet.operand import Block
from losa_cache.train.online import Rounding

RANK, CLASSES = 64, 400
TINY = "vivit_digits"
SHAPES = {
    TINY: (8, 96, (2, 8, 8), 1),
    "vivit_b": (12, 768, (16, 14, 14), 1),
    "vivit_h": (32, 1280, (16, 16, 16), 1),
    "vivit_g": (40, 1408, (16, 16, 16), 1),
    "vivit_G": (48, 1664, (16, 16, 16), 1),
    "vivit_e": (56, 1792, (16, 16, 16), 0),
}
"""Blocks, channels, grid of 32 frames in pairs, prefix tokens; the tiny one, of 4 frames, is for tests."""
Step = Callable[[], None]


def tail(width: int, prefix: int) -> FrozenTail:
    """Build a tail as the shapes' trunks have it: a CLS token where there is one, else the mean."""
    norm = {"type": "layernorm", "eps": 1e-6, "affine": True, "bias": True}
    config = {
        "width": width, "prefix_tokens": prefix, "pool": "token" if prefix else "avg", "pool_prefix": not prefix,
        "class_tokens": prefix, "norm": norm, "fc_norm": {"type": "identity"},
    }  # fmt: skip
    return FrozenTail(config)


def optimizer_of(module: nn.Module) -> torch.optim.AdamW:
    """Build AdamW over what is trained."""
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=True)


def cached(side: str, name: str, clips: int, frames: int) -> Step:
    """Build the step of stage two."""
    depth, width, grid, prefix = SHAPES[name]
    device = choose_device()
    tokens = prefix + grid[0] * grid[1] * grid[2]
    depth = 1 if side == "linear" else depth
    blocks: list[Block] = [torch.randn(clips, tokens, width, device=device).bfloat16() for _ in range(depth)]
    sizes: dict[str, Any] = {"depth": depth, "tokens": tokens, "width": width, "rank": RANK, "classes": CLASSES}
    adapter = Adapter(side=side, tail=tail(width, prefix), grid=grid, **sizes).to(device)
    optimizer, labels = optimizer_of(adapter), torch.zeros(clips, dtype=torch.int64, device=device)

    def step() -> None:
        with autocast(device):
            logits = adapter(blocks)
        descend(logits, labels, optimizer)

    return step


def online(side: str, name: str, clips: int, frames: int) -> Step:
    """Build the step with the frozen backbone in it."""
    device = choose_device()
    backbone = random_backbone(name, device, frames=frames)
    pixels = torch.randint(0, 256, (clips, *backbone.input.shape), dtype=torch.uint8, device=device)
    points = tapped_points("block", range(backbone.depth if side == "linear" else 1, backbone.depth + 1))
    encoding, compute = get_precision("bfloat16").fit([], tokens=1, prefix=0), backbone.compute_dtype("bfloat16")
    sizes = {"depth": len(points), "tokens": backbone.tokens, "width": backbone.width, "rank": RANK, "classes": CLASSES}
    rounding = Rounding.of(encoding, points, points)
    adapter = Adapter(side=side, tail=backbone.tail, grid=backbone.grid, **sizes).to(device)
    optimizer, labels = optimizer_of(adapter), torch.zeros(clips, dtype=torch.int64, device=device)

    def step() -> None:
        blocks = rounding.blocks(backbone, pixels, compute=compute)
        with autocast(device):
            logits = adapter(blocks)
        descend(logits, labels, optimizer)

    return step


def lora(_: str, name: str, clips: int, frames: int) -> Step:
    """Build the step of PEFT's LoRA on the attention's qkv."""
    from peft import LoraConfig, get_peft_model

    device = choose_device()
    backbone = random_backbone(name, device, frames=frames)
    pixels = torch.randint(0, 256, (clips, *backbone.input.shape), dtype=torch.uint8, device=device)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], modules_to_save=["head"])
    model = get_peft_model(Classifier(backbone.model, backbone.width, CLASSES), config).to(device).train()
    optimizer, labels = optimizer_of(model), torch.zeros(clips, dtype=torch.int64, device=device)

    def step() -> None:
        with autocast(device):
            logits = model(backbone.input.normalise(pixels))
        descend(logits, labels, optimizer)

    return step


METHODS = {
    "linear probe, cached": (cached, "linear"),
    "LoSA, cached": (cached, "losa"),
    "linear probe, online": (online, "linear"),
    "LoSA, online": (online, "losa"),
    "LoRA": (lora, ""),
}


class Live(TorchDispatchMode):
    """Count the bytes of all tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def measure(method: str, name: str, clips: int, frames: int, steps: int) -> dict[str, float]:
    """Time steps of one method, after one to warm up."""
    keep_freed_memory()
    gpu = torch.cuda.is_available()
    before = 0.0 if gpu else peak_gigabytes()
    build, side = METHODS[method]
    with nullcontext() if gpu else Live() as live:
        step = build(side, name, clips, frames)
        if gpu:
            free_memory()  # what only the making of random weights took
            torch.cuda.reset_peak_memory_stats()
        step()
    taken = medians(in_turn({method: step}, repeats=steps, warm_up=0))
    tensors = torch.cuda.max_memory_allocated() / 1e9 if live is None else live.peak / 1e9
    peak = torch.cuda.max_memory_reserved() / 1e9 if gpu else peak_gigabytes() - before
    return {"clips_per_second": clips / taken[method], "tensors_gb": tensors, "peak_gb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cached", nargs="*", choices=SHAPES, default=[name for name in SHAPES if name != TINY])
    parser.add_argument("--online", nargs="*", default=["vivit_s"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        name = (arguments.cached or arguments.online)[0]
        print(json.dumps(measure(arguments.method, name, arguments.clips, arguments.frames, arguments.steps)))
        return
    print(f"{machine()}, rank {RANK}, batches of {arguments.clips}")
    for method in METHODS:
        kind = "cached" if "cached" in method else "online"
        for name in getattr(arguments, kind):
            command = [sys.executable, __file__, "--method", method, "--cached", "--online", f"--{kind}", name]
            command += ["--frames", str(arguments.frames), "--clips", str(arguments.clips)]
            done = subprocess.run(
                [*command, "--steps", str(arguments.steps)], capture_output=True, text=True, check=False
            )
            frames = 32 if kind == "cached" else arguments.frames
            if done.returncode:
                print(f"  {method:<22}{name:<9}{frames:3} frames   {done.stderr.strip().splitlines()[-1][:80]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"  {method:<22}{name:<9}{frames:3} frames {found['clips_per_second']:9.3f} clips/s"
                f"   tensors {found['tensors_gb']:6.2f} GB, in all {found['peak_gb']:6.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
