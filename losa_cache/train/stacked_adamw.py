"""AdamW over tensors whose first dimension is the trial, each trial with its own rate, decay and clipping."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StackedAdamW:
    """``clip_grad_norm_`` and AdamW (Loshchilov and Hutter, 2019) as torch computes them, for K trials at once.

    Args:
        parameters: tensors ``(K, ...)``, each with whether it is decayed.
        weight_decay: of each trial.
        clip_grad: largest gradient norm of each trial.
        betas, eps: as in ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[Tensor, bool]],
        *,
        weight_decay: Sequence[float],
        clip_grad: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._parameters = [p for p, _ in parameters]
        self._decayed = [decayed for _, decayed in parameters]
        like = self._parameters[0]
        self._decay, self._clip = like.new_tensor(weight_decay), like.new_tensor(clip_grad)
        self._betas, self._eps = betas, eps
        self._steps = torch.zeros((), dtype=torch.float64, device=like.device)
        size = sum(p[0].numel() for p in self._parameters)
        self._mean, self._square = like.new_zeros(len(like), size), like.new_zeros(len(like), size)

    def keep(self, trials: Sequence[int]) -> None:
        """Forget all trials but these; their parameters are cut by whoever owns them."""
        chosen = torch.tensor(trials, device=self._clip.device)
        self._decay, self._clip = self._decay[chosen], self._clip[chosen]
        self._mean, self._square = self._mean[chosen], self._square[chosen]

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load` takes: tensors and numbers."""
        moments = zip(self._apart(self._mean), self._apart(self._square), strict=True)
        return {
            "steps": int(self._steps.item()),
            "moments": [(mean.clone(), square.clone()) for mean, square in moments],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of the same trials."""
        self._steps.fill_(state["steps"])
        for own, at in ((self._mean, 0), (self._square, 1)):
            own.copy_(torch.cat([moments[at].flatten(1) for moments in state["moments"]], 1))

    @torch.no_grad()
    def step(self, rates: Sequence[float] | Tensor) -> None:
        """Take a step with each trial's learning rate, ``(K,)``, and forget the gradients.

        All gradients are one matrix, a row a trial: a step of many small tensors is many small operations.
        """
        first, second = self._betas
        rate = rates if isinstance(rates, Tensor) else self._clip.new_tensor(rates)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        grad = torch.cat([grad.flatten(1) for grad in grads], 1)
        factor = (self._clip / (grad.norm(dim=1) + 1e-6)).clamp(max=1)  # the constant is clip_grad_norm_'s
        grad.mul_(factor[:, None])
        self._steps += 1
        self._mean.lerp_(grad, 1 - first)
        self._square.mul_(second).addcmul_(grad, grad, value=1 - second)
        corrected = (1 - second**self._steps).sqrt().to(grad)
        spread = (self._square.sqrt() / corrected).add_(self._eps)
        size = rate / (1 - first**self._steps).to(grad)
        change = torch.div(self._mean, spread, out=spread).mul_(size[:, None])
        kept = 1 - rate * self._decay
        for p, own, decayed in zip(self._parameters, self._apart(change), self._decayed, strict=True):
            if decayed:
                p.mul_(kept.view(-1, *[1] * (p.ndim - 1)))
            p.sub_(own)
            p.grad = None

    def _apart(self, rows: Tensor) -> list[Tensor]:
        """Tell the parameters' values apart in a row of all of a trial's."""
        parts = rows.split([p[0].numel() for p in self._parameters], 1)
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]
