"""The number of trials that train at the same time, from a measurement on a small batch."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from losa_cache.cache.precision import get_precision
from losa_cache.layers import choose_layers
from losa_cache.machine.memory import available_memory
from losa_cache.sidenet.build import stack_adapters
from losa_cache.sweep.engine.space import Choices
from losa_cache.train.config import TrainConfig
from losa_cache.train.memory_check import saved_bytes
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import TrainingData

if TYPE_CHECKING:
    from losa_cache.sweep.engine.config import SweepConfig

SAMPLES = 2
SPARE = 0.5  # of the free memory: a step also has states and gradients under way, about as large as what it keeps
GRAPH_SPARE = 0.25  # the same beside a CUDA graph, which does not give its memory to the batches that it is not of
COPIES = 4  # of a trained tensor: itself, its gradient, two moments


def most_trials(largest: TrainConfig, data: TrainingData) -> int:
    """Give the number of trials like the largest of a sweep that fit on a device, at least 1."""
    manifest, device, autocast = data.manifest, data.device, data.autocast
    precision = get_precision(manifest.precision)
    shape = (SAMPLES, manifest.tokens["total"], manifest.width)
    blocks = [torch.zeros(shape, dtype=precision.dtype, device=device) for _ in data.points]
    kept = []
    trained = 0
    for count in (1, 2):
        adapters = [new_adapter(manifest, data.tail, largest, data.targets.names).to(device) for _ in range(count)]
        stack = stack_adapters(adapters).to(device)
        kept.append(saved_bytes(partial(stack, blocks), (*blocks, *stack.parameters()), autocast))
        trained = sum(p.nbytes for p in stack.parameters() if p.requires_grad) // count
    each = (kept[1] - kept[0]) * largest.batch_size // SAMPLES + COPIES * trained
    spare = GRAPH_SPARE if device.type == "cuda" else SPARE
    return max(1, int(spare * available_memory(device) / max(1, each)))


def largest_of(config: "SweepConfig", available: list[int]) -> TrainConfig:
    """Give the options of a trial that no other of the sweep exceeds in rank, batch or layers.

    Args:
        config: of the sweep.
        available: layers of the cache.
    """
    found = config.base
    for name in ("rank", "batch_size"):
        own = config.space.get(name)
        if own is not None:
            largest = max(own.values) if isinstance(own, Choices) else own.high
            changed: dict[str, Any] = {name: int(largest)}
            found = replace(found, **changed)
    layers = config.space.get("layers")
    if isinstance(layers, Choices):
        found = replace(found, layers=max(layers.values, key=lambda choice: len(choose_layers(choice, available))))
    side = config.space.get("side")
    return replace(found, side=side.values[0]) if isinstance(side, Choices) else found
