"""The training loop: it sees batches, and does not know where they come from."""

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from losa_cache.device import has_bfloat16
from losa_cache.errors import UserError
from losa_cache.sidenet.adapter import Adapter
from losa_cache.train.batch import Source
from losa_cache.train.config import TrainConfig
from losa_cache.train.evaluate import evaluate
from losa_cache.train.run import Run
from losa_cache.train.sampler import epoch_order

Report = Callable[[dict[str, Any]], None]


def lr_factor(step: int, *, total: int, warmup: int) -> float:
    """Give the learning rate of a step (from 0) as a share of its peak: linear rise, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def make_optimizer(adapter: Adapter, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW over the trained parameters; only matrices are decayed."""
    trained = [p for p in adapter.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr)


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """Choose bfloat16 matrix products where the device has them, unless the activations are float32 on purpose."""
    return torch.bfloat16 if precision != "float32" and has_bfloat16(device) else None


def train_epoch(
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    source: Source,
    rows: NDArray[np.int64],
    config: TrainConfig,
    *,
    epoch: int,
    autocast: torch.dtype | None,
) -> float:
    """Train one epoch (from 0) and return its mean loss.

    Raises:
        UserError: if the loss stops being a number.
    """
    adapter.train()
    steps = math.ceil(len(rows) / config.batch_size)
    total, warmup = steps * config.epochs, round(steps * config.epochs * config.warmup)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    losses = []
    order = epoch_order(rows, seed=config.seed, epoch=epoch)
    for step, batch in enumerate(source.batches(order, config.batch_size), start=epoch * steps):
        for group in optimizer.param_groups:
            group["lr"] = config.peak_lr * lr_factor(step, total=total, warmup=warmup)
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            logits = adapter(batch.blocks)
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.clip_grad)
        optimizer.step()
        losses.append(loss.detach() * len(batch.labels))
    mean = torch.stack(losses).sum().item() / len(rows)
    if not math.isfinite(mean):
        raise UserError(
            f"the loss of epoch {epoch + 1} is {mean}: lower --lr (it is {config.peak_lr}) or raise --precision."
        )
    return mean


def fit(
    adapter: Adapter,
    source: Source,
    *,
    train_rows: NDArray[np.int64],
    val_rows: NDArray[np.int64],
    config: TrainConfig,
    run: Run,
    device: torch.device,
    autocast: torch.dtype | None,
    report: Report,
) -> None:
    """Train from the run's checkpoint, or the start, to the last epoch; checkpoint, log and report after each."""
    adapter.to(device)
    optimizer = make_optimizer(adapter, config)
    done = 0
    if (state := run.load_checkpoint(device)) is not None:
        adapter.load_state_dict(state["adapter"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        done = state["epoch"]
    for epoch in range(done, config.epochs):
        started = perf_counter()
        metrics: dict[str, Any] = {"epoch": epoch + 1}
        metrics["train_loss"] = train_epoch(
            adapter, optimizer, source, train_rows, config, epoch=epoch, autocast=autocast
        )
        metrics["train_seconds"] = perf_counter() - started
        metrics["train_lr"] = optimizer.param_groups[0]["lr"]
        if len(val_rows):
            found = evaluate(adapter, source, val_rows, batch_size=config.batch_size, autocast=autocast)
            metrics |= {f"val_{name}": value for name, value in found.items()}
        run.log(metrics)  # before the checkpoint: a kill between the two repeats the epoch and its line
        run.save_checkpoint(
            {"epoch": epoch + 1, "adapter": adapter.trained_state(), "optimizer": optimizer.state_dict()}
        )
        report(metrics)
