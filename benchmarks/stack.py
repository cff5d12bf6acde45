"""K trials in one pass over the activations, beside one trial, and beside K trials one after another.

    python benchmarks/stack.py [--trials 1 4 16] [--rank 16] [--shape vit_b] [--batch-size 64] [--repeats 5]

A step is what ``losa-cache train`` and ``sweep`` take (forward, backward, clipping, AdamW), on random bfloat16 block
outputs in memory, 100 classes, a CLS head. "One by one" is K times the measured step of one. The limit is the
arithmetic alone: all multiply-adds of a step at the rate of a square bfloat16 product of 2048 rows.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from side import SHAPES
from timing import Work, in_turn
from torch import Tensor

from losa_cache import Adapter, FrozenTail, TrainConfig
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.tasks.classification import TASK
from losa_cache.train.batch import Batch
from losa_cache.train.graph import Recorder
from losa_cache.train.loop import make_optimizer
from losa_cache.train.stacked_adamw import StackedAdamW
from losa_cache.train.step import AdapterStep, StackStep

CLASSES = 100
TAIL = {
    "prefix_tokens": 1, "pool": "token", "pool_prefix": False, "class_tokens": 1, "fc_norm": {"type": "identity"},
    "norm": {"type": "layernorm", "eps": 1e-6, "affine": True, "bias": True},
}  # fmt: skip


def adapters(
    shape: str, rank: int, count: int, device: torch.device, *, side: str = "losa", head: str = "last"
) -> list[Adapter]:
    """Build adapters that differ in their seed, ready for training."""
    depth, tokens, width, _ = SHAPES[shape]
    tail = FrozenTail({"width": width, **TAIL})
    build = partial(Adapter, side=side, depth=depth, tokens=tokens, width=width, rank=rank, classes=CLASSES, tail=tail)
    built = [build(seed=seed, head=head, points=depth).to(device) for seed in range(count)]
    for adapter in built:
        adapter.begin(TrainConfig.dropout)
    return built


class OneBatch:
    """A training step on the same batch again and again.

    Args:
        step: of one adapter, or of a stack.
        blocks, labels: of the batch.
        recorded: the step should be a graph.
    """

    def __init__(
        self, step: AdapterStep | StackStep, blocks: Sequence[Block], labels: Tensor, *, recorded: bool
    ) -> None:
        self._step, self._batch, self._recorded = step, Batch([*blocks], labels, [], fixed=True), recorded
        step.rates.fill_(1e-3)

    def __call__(self) -> None:
        """Take the step.

        Raises:
            RuntimeError: if it should be a graph and cannot be.
        """
        self._step(self._batch)
        if self._recorded and self._step.why_eager is not None:
            raise RuntimeError(self._step.why_eager)


def alone(adapter: Adapter, blocks: Sequence[Block], labels: Tensor, recorder: Recorder | None = None) -> OneBatch:
    """Build the step of one trial, as ``losa-cache train`` takes it, recorded or eager."""
    optimizer = make_optimizer(adapter, TrainConfig())
    step = AdapterStep(
        adapter,
        optimizer,
        task=TASK,
        clip_grad=1.0,
        options={"label_smoothing": 0.0},
        autocast=torch.bfloat16,
        recorder=recorder,
    )
    return OneBatch(step, blocks, labels, recorded=recorder is not None)


def together(
    members: list[Adapter], blocks: Sequence[Block], labels: Tensor, recorder: Recorder | None = None
) -> OneBatch:
    """Build the step of all trials, as ``losa-cache sweep`` takes it, recorded or eager."""
    count = len(members)
    stack = AdapterStack(members).to(labels.device)
    optimizer = StackedAdamW(stack.decayed(), weight_decay=[1e-4] * count, clip_grad=[1.0] * count)
    step = StackStep(
        stack,
        optimizer,
        task=TASK,
        options={"label_smoothing": [0.0] * count},
        autocast=torch.bfloat16,
        recorder=recorder,
    )
    return OneBatch(step, blocks, labels, recorded=recorder is not None)


def multiply_adds(shape: str, rank: int, batch: int) -> float:
    """Count a trial's: products with b_i + y_0 there and back, and the corrections, once there and twice back."""
    depth, tokens, width, _ = SHAPES[shape]
    c, t = (depth + 1) // 2, depth // 2
    corrections = rank**2 * (c * c * tokens / 2 + t * t * width / 2 + c * t * (tokens + width))
    return batch * (2 * depth * rank * tokens * width + 3 * corrections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--shape", choices=SHAPES, default="vit_b")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    device = choose_device()
    depth, tokens, width, _ = SHAPES[arguments.shape]
    torch.manual_seed(0)
    shape = (arguments.batch_size, tokens, width)
    blocks = [torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(depth)]
    labels = torch.randint(0, CLASSES, (arguments.batch_size,), device=device)
    square = torch.randn(2048, 2048, dtype=torch.bfloat16, device=device)
    steps: dict[str, Work] = {"one": alone(adapters(arguments.shape, arguments.rank, 1, device)[0], blocks, labels)}
    for count in arguments.trials:
        steps[str(count)] = together(adapters(arguments.shape, arguments.rank, count, device), blocks, labels)
    steps["square"] = lambda: square @ square
    times = in_turn(steps, repeats=arguments.repeats)
    rate = 2048**3 / statistics.median(times["square"])
    one = statistics.median(times["one"])
    print(f"{arguments.shape}, rank {arguments.rank}, batch {arguments.batch_size}: one trial {1e3 * one:.0f} ms")
    for count in arguments.trials:
        together_s = statistics.median(times[str(count)])
        ratio = statistics.median(a / b for a, b in zip(times[str(count)], times["one"], strict=True))
        limit = count * multiply_adds(arguments.shape, arguments.rank, arguments.batch_size) / rate
        print(
            f"  {count:3} together {1e3 * together_s:7.0f} ms: {ratio:5.2f} x one, one by one {count:3} x; "
            f"arithmetic alone {1e3 * limit:5.0f} ms"
        )


if __name__ == "__main__":
    main()
