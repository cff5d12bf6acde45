"""A training step of one adapter, or of a stack of them: from a batch to new weights, in place.

On a CUDA device it is replayed as a graph (:mod:`losa_cache.train.graph`). So all that changes from step to step lies
in tensors that stay where they are: learning rates, sums of losses, weights, moments.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.train.batch import Batch
from losa_cache.train.graph import Recorder, Replayed
from losa_cache.train.stacked_adamw import StackedAdamW


class AdapterStep:
    """The step of one adapter: cross entropy, ``clip_grad_norm_``, and an optimiser of torch.

    Args:
        adapter: trained in place.
        optimizer: of its parameters (:func:`losa_cache.train.loop.make_optimizer`). Its learning rate is ``rates``.
        clip_grad: largest gradient norm.
        label_smoothing: of the loss.
        autocast: dtype of the matrix products, or ``None``.
        recorder: how the step is recorded (:func:`losa_cache.train.graph.recorder_for`); ``None``: every step is eager.

    Attributes:
        rates: the learning rate of the next step, a scalar on the device, to be filled.
        loss: sum over the samples seen, a float64 scalar on the device.
    """

    def __init__(
        self,
        adapter: Adapter,
        optimizer: torch.optim.Optimizer,
        *,
        clip_grad: float,
        label_smoothing: float,
        autocast: torch.dtype | None,
        recorder: Recorder | None = None,
    ) -> None:
        self._adapter, self._optimizer = adapter, optimizer
        self._clip, self._smoothing, self._autocast = clip_grad, label_smoothing, autocast
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        device = self._trained[0].device
        # torch's fused AdamW reads the rate of a CUDA device in float32
        self.rates = torch.zeros((), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self._replayed = Replayed(self._take, "the training step", recorder)

    @property
    def why_eager(self) -> str | None:
        """Why steps are eager; ``None`` where they are replayed."""
        return self._replayed.why_eager

    def __call__(self, batch: Batch) -> None:
        """Take a step."""
        self._replayed(batch)

    def _take(self, blocks: Sequence[Block], labels: Tensor) -> None:
        with torch.autocast(labels.device.type, self._autocast, enabled=self._autocast is not None):
            logits = self._adapter(blocks)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rates if self.rates.is_cuda else self.rates.item()
        self._optimizer.step()
        self.loss += loss.detach().double() * len(labels)


class StackStep:
    """The step of K adapters, each with its own rate, smoothing, decay and clipping.

    Args:
        stack: trained in place.
        optimizer: of its parameters.
        label_smoothing: of each trial's loss.
        autocast, recorder: as of :class:`AdapterStep`.

    Attributes:
        rates: learning rates of the next step, float32 ``(K,)`` on the device, to be filled.
        loss: of each trial the sum over the samples seen, float64 ``(K,)`` on the device.
    """

    def __init__(
        self,
        stack: AdapterStack,
        optimizer: StackedAdamW,
        *,
        label_smoothing: Sequence[float],
        autocast: torch.dtype | None,
        recorder: Recorder | None = None,
    ) -> None:
        self._stack, self._optimizer, self._autocast = stack, optimizer, autocast
        self._smoothing = stack.bias.new_tensor(label_smoothing)[:, None]
        self.rates = stack.bias.new_zeros(len(label_smoothing))
        self.loss = torch.zeros(len(label_smoothing), dtype=torch.float64, device=stack.bias.device)
        self._replayed = Replayed(self._take, "the training step", recorder)

    @property
    def why_eager(self) -> str | None:
        """Why steps are eager; ``None`` where they are replayed."""
        return self._replayed.why_eager

    def __call__(self, batch: Batch) -> None:
        """Take a step of every trial."""
        self._replayed(batch)

    def _take(self, blocks: Sequence[Block], labels: Tensor) -> None:
        with torch.autocast(labels.device.type, self._autocast, enabled=self._autocast is not None):
            logits = self._stack(blocks)
        losses = cross_entropies(logits.float(), labels, self._smoothing)
        losses.sum().backward()
        self._optimizer.step(self.rates)
        self.loss += losses.detach().double() * len(labels)


def cross_entropies(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Give each trial's mean cross entropy, ``(K,)``, as torch's with that label smoothing.

    Args:
        logits: ``(K, batch, classes)``.
        labels: int64 ``(batch,)``.
        smoothing: ``(K, 1)``.
    """
    found = F.log_softmax(logits, -1)
    right = found.gather(2, labels.expand(len(found), -1)[..., None]).squeeze(2)
    return -((1 - smoothing) * right + smoothing * found.mean(2)).mean(1)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give the state of an optimiser as it is on any device: with rates as numbers, and not made for graphs."""
    state = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
    return state | {"param_groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take an :func:`optimizer_state`, on the device that the optimiser was made for."""
    capturable = [group["capturable"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, was in zip(optimizer.param_groups, capturable, strict=True):
        group["capturable"] = was
