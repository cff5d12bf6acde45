"""A training step of LoSA and the linear probe, online and cached, beside LoRA, BitFit and full fine-tuning.

    pip install peft
    python benchmarks/peers.py [--backbone vit_s] [--backbone vit_b] [--batch-size 32] [--steps 4] [--repeats 3]

Random weights, 100 classes, bfloat16 autocast where the device has it, AdamW; one batch of pixels that is already on
the device, so that only the step is timed. "Cached" steps have the block outputs in memory; what they cost with the
extraction (forward pass and encoding, without images and disk) spread over 1, 10 and 100 epochs is said below. Every
measurement is a process with its own peak memory; within a repeat all methods run in turn. The limit beside them is the
bare forward pass without gradients.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from made_up import random_backbone
from peak import peak_gigabytes
from side import SHAPES
from stack import adapters
from timing import free_memory, in_turn, medians
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache import Adapter
from losa_cache.cache.precision import EncodedBatch, get_precision
from losa_cache.layers import choose_layers
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, has_bfloat16, machine
from losa_cache.points import tapped_points
from losa_cache.sidenet.operand import Block
from losa_cache.train.online import Rounding

CLASSES, RANK = 100, 16
EXTRACTION, CACHED = "extraction", "LoSA, cached"
EPOCHS = (1, 10, 100)
Step = Callable[[], None]


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where the device has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def side_network(name: str, pixels: Tensor, labels: Tensor, side: str, layers: str) -> tuple[int, Step]:
    """Build the step of ``losa-cache train --online``: backbone in inference mode, adapter trained on its blocks."""
    device = pixels.device
    backbone = random_backbone(name, device)
    encoding, compute = get_precision("bfloat16").fit([], tokens=1, prefix=0), backbone.compute_dtype("bfloat16")
    points = tapped_points("block", choose_layers(layers, range(1, backbone.depth + 1)))
    rounding = Rounding.of(encoding, points, points)
    adapter = Adapter(
        side=side, depth=len(points), tokens=backbone.tokens, width=backbone.width, rank=RANK, classes=CLASSES,
        tail=backbone.tail,
    ).to(device)  # fmt: skip
    trained = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step() -> None:
        blocks = rounding.blocks(backbone, pixels, compute=compute)
        with autocast(device):
            logits = adapter(blocks)
        descend(logits, labels, optimizer)

    return sum(p.numel() for p in trained), step


def extraction(name: str, pixels: Tensor, labels: Tensor) -> tuple[int, Step]:
    """Build the step of ``losa-cache extract``: forward, and every block output encoded."""
    backbone = random_backbone(name, pixels.device)
    points = tapped_points("block", range(1, backbone.depth + 1))
    encoding, compute = get_precision("bfloat16").fit([], tokens=1, prefix=0), backbone.compute_dtype("bfloat16")
    shape = (len(points), backbone.tokens, backbone.width)

    def step() -> None:
        encoded = EncodedBatch.empty(encoding, len(pixels), shape, pixels.device)
        backbone.run(pixels, points, encoded.put, compute=compute)

    return 0, step


def cached(name: str, pixels: Tensor, labels: Tensor, side: str) -> tuple[int, Step]:
    """Build the step of ``losa-cache train`` once the block outputs are there."""
    depth, tokens, width, _ = SHAPES[name]
    depth = 1 if side == "linear" else depth
    shape, device = (len(pixels), tokens, width), pixels.device
    blocks: list[Block] = [torch.randn(shape, device=device).bfloat16() for _ in range(depth)]
    adapter = adapters(name, RANK, 1, device, side=side)[0]
    trained = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step() -> None:
        with autocast(device):
            logits = adapter(blocks)
        descend(logits, labels, optimizer)

    return sum(p.numel() for p in trained), step


class Classifier(nn.Module):
    """A trunk, of images or clips, and a linear head, for gradients that cross the trunk."""

    def __init__(self, trunk: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, or clips: their frames lie side by side as channels."""
        return self.head(self.trunk(images.flatten(1, -3)))


def inside(name: str, pixels: Tensor, labels: Tensor, method: str) -> tuple[int, Step]:
    """Build the step of a method that trains inside the backbone, so that gradients cross it."""
    device = pixels.device
    backbone = random_backbone(name, device)
    model: nn.Module = Classifier(backbone.model.requires_grad_(True), backbone.width, CLASSES)
    if method == "LoRA":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], modules_to_save=["head"])
        model = get_peft_model(model, config)
    elif method == "BitFit":
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name.endswith("bias") or parameter_name.startswith("head"))
    model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        with autocast(device):
            logits = model(backbone.input.normalise(pixels))
        descend(logits, labels, optimizer)

    return sum(p.numel() for p in trained), step


def descend(logits: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimiser step."""
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(logits.float(), labels).backward()
    optimizer.step()


def forward(name: str, pixels: Tensor, labels: Tensor) -> tuple[int, Step]:
    """Build the bare forward pass."""
    backbone = random_backbone(name, pixels.device)

    def step() -> None:
        with torch.inference_mode(), autocast(pixels.device):
            backbone.model(backbone.input.normalise(pixels))

    return 0, step


METHODS: dict[str, Callable[[str, Tensor, Tensor], tuple[int, Step]]] = {
    "bare forward": forward,
    EXTRACTION: extraction,
    "linear probe, cached": partial(cached, side="linear"),
    CACHED: partial(cached, side="losa"),
    "linear probe": partial(side_network, side="linear", layers="1"),
    "LoSA, 4 layers": partial(side_network, side="losa", layers="4"),
    "LoSA, all layers": partial(side_network, side="losa", layers="all"),
    "LoRA": partial(inside, method="LoRA"),
    "BitFit": partial(inside, method="BitFit"),
    "full fine-tuning": partial(inside, method="full"),
}


def measure(method: str, name: str, batch_size: int, steps: int) -> dict[str, float]:
    """Time steps of one method, after two to warm up."""
    keep_freed_memory()
    device = choose_device()
    torch.manual_seed(0)
    size = random_backbone(name, device).input.size
    pixels = torch.randint(0, 256, (batch_size, *size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)
    trained, step = METHODS[method](name, pixels, labels)
    if device.type == "cuda":
        free_memory()  # what only the making of random weights took
        torch.cuda.reset_peak_memory_stats()
    taken = medians(in_turn({method: step}, repeats=steps, warm_up=2))
    on_device = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_gigabytes()
    return {"seconds": taken[method], "trained": trained, "peak_gb": on_device}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", help="default: vit_s and vit_b")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments.method, arguments.backbone[0], arguments.batch_size, arguments.steps)))
        return
    print(f"{machine()}, batches of {arguments.batch_size}, rank {RANK}")
    for name in arguments.backbone or ["vit_s", "vit_b"]:
        runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for _ in range(arguments.repeats):
            for method, found in runs.items():
                command = [sys.executable, __file__, "--method", method, "--backbone", name]
                command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
                found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        report(name, arguments.batch_size, runs)


def report(name: str, batch_size: int, runs: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, and the ratio to LoSA over all layers repeat by repeat."""
    print(f"\n{name}: trained parameters, images/s, step over that of LoSA (range), peak GB")
    reference = [run["seconds"] for run in runs["LoSA, all layers"]]
    for method, found in runs.items():
        seconds = statistics.median(run["seconds"] for run in found)
        ratios = sorted(run["seconds"] / ours for run, ours in zip(found, reference, strict=True))
        print(
            f"  {method:<22}{found[0]['trained']:>12,}{batch_size / seconds:9.1f}"
            f"{statistics.median(ratios):8.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            f"{statistics.median(run['peak_gb'] for run in found):8.1f}"
        )
    per_image = {
        method: statistics.median(run["seconds"] for run in found) / batch_size for method, found in runs.items()
    }
    spread = (f"{epochs} epochs {1e3 * (per_image[EXTRACTION] / epochs + per_image[CACHED]):.2f}" for epochs in EPOCHS)
    print(f"  LoSA with its extraction, ms an image and epoch: {', '.join(spread)}; LoRA {1e3 * per_image['LoRA']:.2f}")


if __name__ == "__main__":
    main()
