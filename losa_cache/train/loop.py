"""The training loop. It receives batches and does not know where they come from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.machine.energy import EnergyMeter
from losa_cache.machine.memory import peak_memory
from losa_cache.outside import UnreadableError
from losa_cache.sidenet.adapter import Adapter
from losa_cache.tasks import Task
from losa_cache.train import all_layers
from losa_cache.train.batch import Source
from losa_cache.train.bottleneck import limiter, rates_and_joules, time_metrics
from losa_cache.train.checkpoint import largest_size, restore
from losa_cache.train.config import TrainConfig
from losa_cache.train.costs import run_costs
from losa_cache.train.diverged import diverged, require_weights
from losa_cache.train.graph import recorder_for
from losa_cache.train.interrupt import Interrupt
from losa_cache.train.run import Run
from losa_cache.train.sampler import Weights, epoch_requests
from losa_cache.train.step import AdapterStep
from losa_cache.train.stopwatch import Stopwatch
from losa_cache.train.training_data import TrainingData
from losa_cache.train.validate import validate
from losa_cache.tuned.tuned import Model, adapter_of

CHECKPOINT_SECONDS = 300
WORTH_MEASURING = 0.1  # GB an epoch: less is read before its limit is measured
Report = Callable[[dict[str, Any]], None]
"""Is given each epoch's metrics."""
Progress = Callable[[float], None]
"""Is given the passes over the samples done so far, with their fraction, after every batch."""


def lr_factor(step: int, *, total: int, warmup: int) -> float:
    """Give the learning rate of a step (from 0) as a share of its peak: linear rise, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def make_optimizer(adapter: Model, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW over the trained parameters; weight decay applies to matrices only."""
    trained = [p for p in adapter.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, fused=True)  # unfused, 60 small tensors cost as much as a layer


def make_step(
    adapter: Model,
    optimizer: torch.optim.AdamW,
    config: TrainConfig,
    *,
    autocast: torch.dtype | None,
    task: Task | None = None,
) -> AdapterStep:
    """Make the training step; on CUDA it is replayed as a graph.

    ``task`` is the one that was fitted to the training samples; by default that of the options, fitted to nothing.
    """
    task = task or config.learns
    return AdapterStep(
        adapter,
        optimizer,
        task=task,
        clip_grad=config.clip_grad,
        options=task.options_of(config),
        autocast=autocast,
        recorder=recorder_for(next(adapter.parameters()).device),
    )


@dataclass
class EpochProgress:
    """The progress within an epoch.

    Attributes:
        steps: number of finished steps.
        loss: sum of the losses of the samples seen, float64.
        seconds: duration of these steps.
        spent: seconds for each part of the source.
    """

    steps: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    def note(self, spent: Mapping[str, float]) -> None:
        """Add the seconds of a source."""
        for name, seconds in spent.items():
            self.spent[name] = self.spent.get(name, 0.0) + seconds


def train_epoch(
    adapter: Model,
    optimizer: torch.optim.AdamW,
    source: Source,
    samples: NDArray[np.int64],
    config: TrainConfig,
    *,
    epoch: int,
    autocast: torch.dtype | None,
    weights: Weights | None = None,
    passed: EpochProgress | None = None,
    watch: Stopwatch | None = None,
    step: AdapterStep | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Train one epoch (from 0), or the rest of it, and return its mean loss.

    Args:
        adapter, optimizer: trained in place.
        source: source of batches.
        samples: numbers of the training samples.
        config: the options.
        epoch: number of the epoch, from 0.
        autocast: dtype of the matrix products, or ``None``.
        weights: weights of these samples; ``None``: each comes once.
        passed: progress within the epoch; it is updated.
        watch: measures the time of the side network.
        step: training step of this adapter and optimizer; by default one is made for this epoch.
        after_step: called between steps.

    Raises:
        DivergedError: if the loss, or a weight, stops being a number.
    """
    adapter.train()
    device = next(adapter.parameters()).device
    passed = passed or EpochProgress()
    watch = watch or Stopwatch(device)
    step = step or make_step(adapter, optimizer, config, autocast=autocast)
    requests = epoch_requests(samples, batch_size=config.batch_size, seed=config.seed, epoch=epoch, weights=weights)
    total = len(requests) * config.epochs
    warmup = round(total * config.warmup)
    left = requests[passed.steps :]
    rates = [config.peak_lr * lr_factor(request.step, total=total, warmup=warmup) for request in left]
    on_device = torch.tensor(rates, dtype=torch.float64).to(step.rates)  # at once: no step then waits for a copy
    step.loss.copy_(passed.loss)
    passed.loss = step.loss
    started = perf_counter()
    learning_rates = iter(zip(rates, on_device, strict=True))
    for batch in source.batches(left):  # not zipped with the rates: that would keep the batch before
        rate, rate_on_device = next(learning_rates)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with watch.computing("compute"):
            step.rates.copy_(rate_on_device)
            step(batch)
        del batch  # its memory is free again while the source makes the next one
        passed.steps += 1
        now = perf_counter()
        passed.seconds += now - started
        started = now
        after_step()
    mean = passed.loss.item() / len(samples)
    passed.seconds += perf_counter() - started  # a GPU was not waited for until now
    passed.note(source.spent())
    passed.note(watch.take())
    if not math.isfinite(mean):
        raise diverged(f"the loss of epoch {epoch + 1} is {mean}", config)
    require_weights(adapter, config, epoch=epoch)
    return mean


def fit(
    model: Model,
    data: TrainingData,
    *,
    config: TrainConfig,
    run: Run,
    report: Report,
    progress: Progress,
) -> dict[str, float] | None:
    """Train from the run's checkpoint, or from the start, to the last epoch; checkpoint, log and report after each
    epoch.

    Inside an epoch a checkpoint is written every five minutes, and at a signal to stop (Ctrl-C, SIGTERM, SIGHUP): the
    run resumes at the next batch.

    Returns:
        what :func:`finish` does.

    Raises:
        DivergedError: if the loss, a weight or the loss of held-out samples stops being a number.
        KeyboardInterrupt: after a signal to stop and the checkpoint, if the previous handler of the signal returns.
    """
    device, autocast = data.device, data.autocast
    adapter = adapter_of(model)
    optimizer = make_optimizer(model, config)
    step = make_step(model, optimizer, config, autocast=autocast, task=data.task)
    done, passed, watch, energy = 0, EpochProgress(), Stopwatch(device), EnergyMeter(device)
    costs = run_costs(model, data)
    steps = math.ceil(len(data.chosen.train) / config.batch_size)
    if (state := run.load_checkpoint(device, at_most=largest_size(model))) is not None:
        try:
            done, seen = restore(state, model, optimizer, epochs=config.epochs, steps=steps)
        except UnreadableError as error:
            raise run.unusable(error) from error
        passed = EpochProgress(**seen)
    saved = perf_counter()

    def save() -> None:
        nonlocal saved
        run.save_checkpoint(
            {
                "epoch": done,
                "passed": asdict(passed),
                "adapter": model.trained_state(),
                "optimizer": optimizer.state_dict(),
            }
        )
        saved = perf_counter()

    def between_batches() -> None:
        progress(done + passed.steps / steps)
        if interrupt.asked or perf_counter() - saved > CHECKPOINT_SECONDS:
            passed.note(data.source.spent())
            passed.note(watch.take())
            passed.note(energy.take())
            save()
        unless_stopped()

    def unless_stopped() -> None:
        if interrupt.asked:
            raise KeyboardInterrupt

    with Interrupt() as interrupt:
        rows = None
        if state is None and adapter.reader is not None:
            rows = all_layers.start(adapter, data, config, progress=lambda share: unless_stopped())
        while done < config.epochs:
            energy.take()  # what validation took is not an epoch's
            mean = train_epoch(
                model,
                optimizer,
                data.source,
                data.chosen.train,
                config,
                epoch=done,
                autocast=autocast,
                weights=data.chosen.weights,
                passed=passed,
                watch=watch,
                step=step,
                after_step=between_batches,
            )
            passed.note(energy.take())
            metrics: dict[str, Any] = {"epoch": done + 1, "train_loss": mean, "train_seconds": passed.seconds}
            bandwidth = data.source.bandwidth() if passed.spent.get("gigabytes", 0) >= WORTH_MEASURING else None
            metrics |= time_metrics(passed.seconds, passed.spent, bandwidth)
            metrics["limiter"] = limiter(metrics, bandwidth, side=config.side, inside=config.trains is not None)
            metrics["train_lr"] = optimizer.param_groups[0]["lr"]
            metrics["train_peak_gb"] = peak_memory(device) / 1e9
            metrics |= rates_and_joules(len(data.chosen.train), passed.seconds, passed.spent) | costs
            metrics |= validate(model, data, config, between_batches=between_batches)
            run.log(metrics)  # before the checkpoint: a kill between the two repeats the epoch and its line
            done, passed = done + 1, EpochProgress()
            save()
            report(metrics)
        return finish([adapter], data, config, seen=rows)[0]


def finish(
    adapters: Sequence[Adapter],
    data: TrainingData,
    config: TrainConfig,
    *,
    seen: all_layers.Rows | None = None,
    refit: bool = True,
) -> list[dict[str, float] | None]:
    """Finish trained adapters before they are saved (arguments as in :func:`losa_cache.train.all_layers.refit`).

    Without ``refit`` the probe stays fitted to the training samples alone.

    Returns:
        for each adapter the arguments of ``losa_cache.train.all_layers.unfit``; ``None`` if there is nothing to undo.
    """
    refitted = refit and all_layers.refit(adapters, data, config, seen)
    done: list[dict[str, float] | None] = []
    for adapter in adapters:
        blend = adapter.blend
        undo = blend.chosen()._asdict() | {"share": float(blend.share[0])} if blend is not None and refitted else None
        done.append(undo)
        adapter.fold()
        data.task.fold(adapter.classifier)
        if adapter.probe is not None:
            data.task.fold_probe(adapter.probe)
    return done
