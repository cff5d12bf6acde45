"""A training step: forward, loss, backward, clipping, optimiser, and the sum of the losses.

It may be replayed as a CUDA graph (:mod:`losa_cache.train.graph`). So what changes from step to step lies in tensors
that stay where they are, and nothing on the way waits for the device. Autocast is entered inside the step: the rounded
weights that it keeps begin and end there, and no replay finds those of another step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.products import wide
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.tasks import Task
from losa_cache.train.batch import Batch
from losa_cache.train.graph import Recorder, Replayed
from losa_cache.train.stacked_adamw import StackedAdamW

WHAT = "The training step"


class _Step(ABC):
    """What is taken for every batch, by a replay where that can be."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._replayed = Replayed(WHAT, recorder)

    @property
    def why_eager(self) -> str | None:
        """Why steps are taken eagerly; ``None`` where they are replayed."""
        return self._replayed.why_eager

    def __call__(self, batch: Batch) -> None:
        """Take a step."""
        self._replayed(self._take, batch)

    @abstractmethod
    def _take(self, blocks: Sequence[Block], targets: Tensor) -> None: ...


class AdapterStep(_Step):
    """A training step of one adapter, or of a backbone that a method changes and the adapter behind it.

    Args:
        adapter, optimizer: outputs of blocks, and what trains it in place.
        task: whose loss it is.
        clip_grad: largest norm of the gradient.
        options: of the loss, by name (:attr:`losa_cache.tasks.Task.loss_options`).
        autocast: dtype of the matrix products, or ``None``.
        recorder: records the step (:func:`losa_cache.train.graph.recorder_for`); ``None``: each is taken eagerly.

    Attributes:
        rates: the learning rate of the next step, ``()``: to be filled before it.
        loss: sum over the samples of all steps, float64 ``()``: to be set to zero by whoever reads it.
    """

    def __init__(
        self,
        adapter: Callable[[Sequence[Block]], Tensor],
        optimizer: torch.optim.AdamW,
        *,
        task: Task,
        clip_grad: float,
        options: Mapping[str, float],
        autocast: torch.dtype | None,
        recorder: Recorder | None,
    ) -> None:
        super().__init__(recorder)
        self._adapter, self._optimizer = adapter, optimizer
        self._task, self._options = task, options
        self._clip_grad, self._autocast = clip_grad, autocast
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        device = self._trained[0].device
        # AdamW's kernel for CUDA reads float32; the one for CPUs takes the number as it is.
        self.rates = torch.zeros((), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)

    def _take(self, blocks: Sequence[Block], targets: Tensor) -> None:
        try:
            with torch.autocast(targets.device.type, self._autocast, enabled=self._autocast is not None):
                outputs = self._adapter(blocks)
            loss = self._task.loss(outputs.float(), targets, **self._options)
            loss.backward()
            nn.utils.clip_grad_norm_(self._trained, self._clip_grad)
            with self._rates_in_place():
                self._optimizer.step()
            self.loss += loss.detach().double() * len(targets)
        finally:
            self._optimizer.zero_grad(set_to_none=True)  # gradients may lie in the memory of a graph

    @contextmanager
    def _rates_in_place(self) -> Iterator[None]:
        """Have AdamW read the rate from the device, and put back the numbers, which are what a checkpoint holds."""
        groups = self._optimizer.param_groups
        numbers = [(group["lr"], group["capturable"]) for group in groups]
        capturing = self.rates.is_cuda and torch.cuda.is_current_stream_capturing()
        for group in groups:
            group["lr"], group["capturable"] = self.rates, capturing
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, numbers, strict=True):
                group["lr"], group["capturable"] = rate, capturable


class StackStep(_Step):
    """A training step of K adapters, each with its own learning rate, options of the loss, decay and clipping.

    Args:
        stack, optimizer: trained in place.
        task: whose loss it is.
        options: of the loss, by name, a number for each trial.
        autocast, recorder: as of :class:`AdapterStep`.
        folds: the part of the samples that each trial holds out: they are in its batches, but not in its loss;
            ``None``: trials hold nothing out of their batches.
        batch_size: samples of a batch at most, where there are folds.

    Attributes:
        rates: each trial's learning rate of the next step, ``(K,)``: to be filled before it.
        loss: each trial's sum over the samples of all steps, float64 ``(K,)``: to be set to zero by whoever reads it.
        parts: which part each sample of the next batch is of, int64 ``(batch_size,)``: to be filled before it.
    """

    def __init__(
        self,
        stack: AdapterStack,
        optimizer: StackedAdamW,
        *,
        task: Task,
        options: Mapping[str, Sequence[float]],
        autocast: torch.dtype | None,
        recorder: Recorder | None,
        folds: Sequence[int] | None = None,
        batch_size: int = 0,
    ) -> None:
        super().__init__(recorder)
        self._stack, self._optimizer, self._task, self._autocast = stack, optimizer, task, autocast
        like = stack.weight
        self.rates = like.new_zeros(len(like))
        self.loss = like.new_zeros(len(like), dtype=torch.float64)
        self._options = {name: like.new_tensor(values)[:, None] for name, values in options.items()}
        self.parts = like.new_zeros(batch_size, dtype=torch.int64)
        self._folds = None if folds is None else self.parts.new_tensor(folds)[:, None]

    def keep(self, trials: Sequence[int]) -> None:
        """Forget all trials but these, after the stack and the optimiser have."""
        self.rates, self.loss = self.rates[list(trials)], self.loss[list(trials)]
        self._options = {name: values[list(trials)] for name, values in self._options.items()}
        self._folds = None if self._folds is None else self._folds[list(trials)]
        self._replayed.forget()

    def forget(self) -> None:
        """Record anew, because parameters or moments have moved."""
        self._replayed.forget()

    def _take(self, blocks: Sequence[Block], targets: Tensor) -> None:
        try:
            with torch.autocast(targets.device.type, self._autocast, enabled=self._autocast is not None):
                outputs = self._stack(blocks)
            own = None if self._folds is None else self.parts[: len(targets)] != self._folds
            each = self._task.losses(outputs.to(wide(outputs)), targets, **self._options)
            losses = mean_losses(each, own)
            losses.sum().backward()
            self._optimizer.step(self.rates)
            self.loss += losses.detach().double() * (len(targets) if own is None else own.sum(1))
        finally:
            self._stack.zero_grad(set_to_none=True)  # gradients may lie in the memory of a graph


def mean_losses(each: Tensor, own: Tensor | None = None) -> Tensor:
    """Give each trial's mean loss, ``(K,)``.

    Args:
        each: losses of the samples, ``(K, batch)``.
        own: which samples a trial's mean is over, bool ``(K, batch)``; ``None``: all. The mean of none is 0.
    """
    return each.mean(1) if own is None else each.where(own, 0).sum(1) / own.sum(1).clamp(min=1)
