"""A training step of the side network alone: the plain form, compiled where that works, and the fast form.

    python benchmarks/side.py [--shape vit_b] [--rank 16] [--batch-size N] [--repeats 5] [--compile]

Block outputs are random bfloat16 tensors in memory, products bfloat16, a CLS head. Methods take turns; figures are
medians of the repeats, ratios those of the ratios. "int8" steps read codes, decoded first or folded. The limit is the
time to stream the block outputs twice, once on the way forth and once on the way back, through a product with a matrix
of r columns. "Saved" is what autograd keeps for the way back beside the block outputs; "peak" is what a step adds to
the memory of a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import torch
from peak import peak_gigabytes
from timing import Work, in_turn, medians, that_work
from torch import Tensor
from torch.nn import functional as F

from losa_cache import LoSA
from losa_cache.factors import Codes
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, machine
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.readout import First
from losa_cache.train.memory_check import saved_bytes

TINY = "vit_digits"
SHAPES = {
    TINY: (8, 65, 96, 8),
    "vit_s": (12, 197, 384, 64),
    "vit_b": (12, 197, 768, 64),
    "vit_l": (24, 197, 1024, 32),
    "vit_h": (32, 257, 1280, 16),
    "vit_g": (40, 257, 1408, 8),
}
"""Blocks, tokens, channels, and a batch whose plain form fits 16 GB; the tiny one is for tests of the benchmarks."""
Forward = Callable[[list[Tensor]], Tensor]


def setting(shape: str, rank: int, batch: int, device: torch.device) -> tuple[LoSA, list[Tensor]]:
    """Build a network whose updates are not zero, and its block outputs."""
    depth, tokens, width, _ = SHAPES[shape]
    torch.manual_seed(0)
    network = LoSA(depth=depth, tokens=tokens, width=width, rank=rank).to(device)
    for name, parameter in network.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return network, [torch.randn(batch, tokens, width, dtype=torch.bfloat16, device=device) for _ in range(depth)]


def forms(network: LoSA, *, compiled: bool) -> dict[str, Forward]:
    """Name the ways to the CLS row of y_k."""
    readout = First(network.tokens, 1)
    found: dict[str, Forward] = {"plain": lambda blocks: network.plain(blocks)[:, :1]}
    if compiled:
        torch.compiler.reset()  # or the ninth shape is not compiled any more
        plain = torch.compile(network.plain)
        found["compiled"] = lambda blocks: plain(blocks)[:, :1]
    found["fast"] = lambda blocks: network(blocks, readout)
    return found


def codes(block: Tensor) -> Codes:
    """Store a block output as an int8 cache does, without equalising channels."""
    tokens = block.float().abs().amax(-1) / 127
    return Codes(
        (block / tokens[..., None]).round().to(torch.int8),
        tokens.bfloat16(),
        torch.ones(block.shape[2], device=block.device),
        torch.bfloat16,
    )


def step(network: LoSA, forward: Forward, blocks: list[Tensor]) -> None:
    """Take one forward and backward pass."""
    with torch.autocast(blocks[0].device.type, torch.bfloat16):
        y = forward(blocks)
    y.float().square().mean().backward()
    network.zero_grad()


def stream_twice(blocks: list[Tensor], weight: Tensor) -> None:
    """Do what no step can do without: multiply all block outputs by ``(rank, channels)``, twice."""
    for _ in range(2):
        for block in blocks:
            F.linear(block, weight)


def peak(shape: str, rank: int, batch: int, form: str) -> float:
    """Measure what steps add to the peak memory, in GB, on the GPU or of this process."""
    device = choose_device()
    network, blocks = setting(shape, rank, batch, device)
    before = torch.cuda.memory_allocated() / 1e9 if device.type == "cuda" else peak_gigabytes()
    for _ in range(2):
        step(network, forms(network, compiled=False)[form], blocks)
    return (torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_gigabytes()) - before


def compare(shape: str, rank: int, batch: int, repeats: int, *, compiled: bool) -> None:
    """Print a line a form."""
    network, blocks = setting(shape, rank, batch, choose_device())
    ways = forms(network, compiled=compiled)
    coded: list[Block] = [*map(codes, blocks[:-1]), blocks[-1]]
    ways["int8, decoded"] = lambda _: network(dense(coded), First(network.tokens, 1))
    ways["int8, folded"] = lambda _: network(coded, First(network.tokens, 1))
    weight = torch.randn(rank, network.width, dtype=torch.bfloat16, device=blocks[0].device)
    works: dict[str, Work] = {name: partial(step, network, forward, blocks) for name, forward in ways.items()}
    works, failed = that_work(works)
    for name, reason in failed.items():
        print(f"  {name}: {reason}")
    times = in_turn({**works, "limit": partial(stream_twice, blocks, weight)}, repeats=repeats)
    known = (*blocks, *network.parameters())
    saved = {name: saved_bytes(partial(ways[name], blocks), known, torch.bfloat16) for name in ("plain", "fast")}
    median = medians(times)
    print(f"{shape}, rank {rank}, batch {batch}: streaming twice {1e3 * median['limit']:.1f} ms")
    for name in works:
        over = statistics.median(a / b for a, b in zip(times[name], times["limit"], strict=True))
        gain = statistics.median(a / b for a, b in zip(times["plain"], times[name], strict=True))
        line = f"  {name:<14}{1e3 * median[name]:8.1f} ms {batch / median[name]:8.0f} images/s"
        line += f"   {gain:5.1f} x plain   {over:5.1f} x the limit"
        if name in saved:
            command = [sys.executable, __file__, "--peak", name, "--shape", shape]
            command += ["--rank", str(rank), "--batch-size", str(batch)]
            added = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            line += f"   saved {saved[name] / 1e6:7.1f} MB ({saved[name] / saved['plain']:.3f})   peak {added:.2f} GB"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=[shape for shape in SHAPES if shape != TINY])
    parser.add_argument("--rank", nargs="*", type=int, default=[4, 16, 64])
    parser.add_argument("--batch-size", type=int, help="default: one that fits 16 GB in the plain form")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile the plain form, too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("ignore")
    if arguments.peak:
        print(peak(arguments.shape[0], arguments.rank[0], arguments.batch_size, arguments.peak))
        return
    print(f"{machine()}")
    for shape in arguments.shape:
        for rank in arguments.rank:
            batch = arguments.batch_size or SHAPES[shape][3]
            compare(shape, rank, batch, arguments.repeats, compiled=arguments.compile)


if __name__ == "__main__":
    main()
