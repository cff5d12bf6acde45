"""Trials that train together: each batch is read once for all of them, and the result of each is the same as alone."""

from collections.abc import Sequence
from math import isfinite
from time import perf_counter
from typing import Any

import torch

from losa_cache.machine.energy import EnergyMeter
from losa_cache.machine.memory import peak_memory
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.build import stack_adapters
from losa_cache.sweep.engine.folds import HeldOut
from losa_cache.sweep.engine.held_out_results import HeldOutResults, ResultCollector
from losa_cache.train import all_layers
from losa_cache.train.config import TrainConfig
from losa_cache.train.evaluate import evaluate_each, keep_nothing
from losa_cache.train.graph import recorder_for
from losa_cache.train.loop import lr_factor
from losa_cache.train.sampler import epoch_requests
from losa_cache.train.stacked_adamw import StackedAdamW
from losa_cache.train.step import StackStep
from losa_cache.train.training_data import TrainingData


class Cohort:
    """Trials at the same epoch, on the same batches.

    Args:
        numbers: numbers of the trials.
        configs: their options; they may differ only in :data:`losa_cache.sweep.engine.grouping.ITS_OWN`.
        adapters: untrained ones, on the device of ``data``.
        data: what they are trained on.
        held: the samples that each trial holds out of the training samples of ``data``, if trials of several splits
            train together; ``None`` if the training samples are the same for all.

    Attributes:
        epoch: number of finished epochs.
        judged: after the last epoch, the result of each trial on each image that it held out, by number.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        configs: Sequence[TrainConfig],
        adapters: Sequence[Adapter],
        data: TrainingData,
        held: HeldOut | None = None,
    ) -> None:
        self._held = held
        self.numbers, self.configs = list(numbers), list(configs)
        self.data, self.epoch = data, 0
        self.judged: dict[int, HeldOutResults] = {}
        self._adapters = list(adapters)
        self._stack = stack_adapters(adapters).to(data.device)
        self._optimizer = StackedAdamW(
            self._stack.decayed(),
            weight_decay=[config.weight_decay for config in configs],
            clip_grad=[config.clip_grad for config in configs],
        )
        self._step = StackStep(
            self._stack,
            self._optimizer,
            task=data.task,
            options={name: [getattr(config, name) for config in configs] for name in data.task.loss_options},
            autocast=data.autocast,
            recorder=recorder_for(data.device),
            folds=None if held is None else held.folds,
            batch_size=configs[0].batch_size,
        )
        self._energy = EnergyMeter(data.device)

    @property
    def done(self) -> bool:
        """Whether the last epoch is over."""
        return self.epoch == self.configs[0].epochs

    def config_of(self, number: int) -> TrainConfig:
        """Give a trial's options."""
        return self.configs[self.numbers.index(number)]

    def run_epoch(self, *, judge: bool = True) -> list[dict[str, Any]]:
        """Train one epoch and, unless it is switched off, validate all trials on all held-out samples.

        Returns:
            metrics of each trial, the same as those of a single run, without the times of its parts; of the energy each
            has an equal share. A ``train_loss`` that is no number says that the trial failed, by its loss or its
            weights.
        """
        if (
            self.epoch == 0 and self._stack.blend is not None
        ):  # held-out samples of a split are others' training samples
            all_layers.start(self._stack, self.data, self.configs[0], alone=self._held is not None)
        self._energy.take()  # what was taken before is not an epoch's
        started = perf_counter()
        losses, rates = self._train()
        seconds = perf_counter() - started
        self.epoch += 1
        costs = {
            "train_seconds": seconds,
            "train_images_per_second": len(self.data.chosen.train) / seconds,
            "train_peak_gb": peak_memory(self.data.device) / 1e9,
        } | {f"train_{name}": joules / len(losses) for name, joules in self._energy.take().items()}
        metrics = [
            {"epoch": self.epoch, "train_loss": loss, "train_lr": rate} | costs
            for loss, rate in zip(losses, rates, strict=True)
        ]
        if not judge:
            return metrics
        self._stack.eval()
        batch_size = self.configs[0].batch_size
        weighed: list[dict[str, float]] = [{} for _ in metrics]
        if self._stack.blend is not None and self._held is None:
            weighed = all_layers.weigh(self._stack, self.data, batch_size=batch_size)
        collector = ResultCollector(self.data.task)
        found = evaluate_each(
            self._stack,
            self.data.plain,
            self.data.chosen.held_out,
            task=self.data.task,
            batch_size=batch_size,
            autocast=self.data.autocast,
            keep=collector if self.done else keep_nothing,
        )
        if self.done:
            whose = None if self._held is None else self._held.whose(self.data.chosen.held_out)
            self.judged = dict(zip(self.numbers, collector.results(whose), strict=True))
        each = [one | more for one, more in zip(found, weighed, strict=True)]
        return [own | {f"val_{name}": v for name, v in one.items()} for own, one in zip(metrics, each, strict=True)]

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all trials but these."""
        places = [self.numbers.index(number) for number in numbers]
        self._stack.keep(places)
        self._optimizer.keep(places)
        self._step.keep(places)
        if self._held is not None:
            self._held = self._held.keep(places)
        self.numbers = [self.numbers[place] for place in places]
        self.configs = [self.configs[place] for place in places]
        self._adapters = [self._adapters[place] for place in places]

    def adapters(self) -> list[Adapter]:
        """Give the current adapter of each trial."""
        self._stack.unstack(self._adapters)
        return self._adapters

    def state(self) -> dict[str, Any]:
        """Give the state for :meth:`load`: tensors and numbers."""
        return {
            "numbers": self.numbers,
            "epoch": self.epoch,
            "stack": self._stack.trained_state(),
            "optimizer": self._optimizer.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state` of the same trials."""
        self.epoch = state["epoch"]
        self._stack.load_trained(state["stack"])
        self._optimizer.load(state["optimizer"])
        self._step.forget()

    def _train(self) -> tuple[list[float], list[float]]:
        self._stack.train()
        first, chosen = self.configs[0], self.data.chosen
        requests = epoch_requests(
            chosen.train, batch_size=first.batch_size, seed=first.seed, epoch=self.epoch, weights=chosen.weights
        )
        total = len(requests) * first.epochs
        rates = [
            [
                config.peak_lr * lr_factor(request.step, total=total, warmup=round(total * config.warmup))
                for config in self.configs
            ]
            for request in requests
        ]
        on_device = torch.tensor(rates).to(self._step.rates)  # at once: no step then waits for a copy
        self._step.loss.zero_()
        parts = None if self._held is None else iter(self._held.batches(requests, on_device.device))
        learning_rates = iter(on_device)
        for batch in self.data.source.batches(requests):  # not zipped: that would keep the batch before
            self._step.rates.copy_(next(learning_rates))
            if parts is not None:
                self._step.parts[: len(batch.labels)] = next(parts)
            self._step(batch)
            del batch  # its memory is free again while the source makes the next one
        seen = [len(chosen.train)] * len(rates[0]) if self._held is None else self._held.count(requests)
        weights = [own.flatten(1).isfinite().all(1) for own, _ in self._stack.decayed()]
        means = self._step.loss / self._step.loss.new_tensor(seen).clamp(min=1)
        losses = means.where(torch.stack(weights).all(0), torch.nan).tolist()
        return [loss if isfinite(loss) else float("nan") for loss in losses], rates[-1]
