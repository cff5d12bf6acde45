"""What an epoch's end measures on held-out samples."""

import math
from collections.abc import Callable
from typing import Any

from losa_cache.train import all_layers
from losa_cache.train.config import TrainConfig
from losa_cache.train.diverged import diverged
from losa_cache.train.evaluate import evaluate
from losa_cache.train.training_data import TrainingData
from losa_cache.tuned.tuned import Model, adapter_of


def validate(
    model: Model,
    data: TrainingData,
    config: TrainConfig,
    *,
    between_batches: Callable[[], None],
) -> dict[str, float]:
    """Evaluate an adapter on the held-out samples of a run; of a classifier over all layers set the shares first.

    Args:
        model: under training.
        data: with the held-out samples; there may be none.
        config: the options.
        between_batches: called after every batch.

    Returns:
        the metrics, named ``val_...``; empty without held-out samples.

    Raises:
        DivergedError: if their loss is no number.
    """
    source, held_out = data.plain, data.chosen.held_out
    if not len(held_out):
        return {}
    options: dict[str, Any] = {
        "task": data.task,
        "batch_size": config.batch_size,
        "autocast": data.autocast,
        "clips": data.manifest.clips,
        "progress": lambda share: between_batches(),
    }
    found: dict[str, float] = {}
    adapter = adapter_of(model)
    if adapter.blend is not None:
        adapter.eval()
        weighing = {name: options[name] for name in ("batch_size", "progress")}
        (found,) = all_layers.weigh(adapter, data, **weighing)
    found = evaluate(model, source, held_out, **options) | found
    source.spent()  # no part of the training
    if not math.isfinite(found["loss"]):
        raise diverged(f"the loss of held-out samples is {found['loss']}", config)
    return {f"val_{name}": value for name, value in found.items()}
