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
        like = self._parameters[0]
        self._decay = [like.new_tensor(weight_decay) if decayed else None for _, decayed in parameters]
        self._clip = like.new_tensor(clip_grad)
        self._betas, self._eps, self._steps = betas, eps, 0
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self._parameters]

    def keep(self, trials: Sequence[int]) -> None:
        """Forget all trials but these; their parameters are cut by whoever owns them."""
        chosen = torch.tensor(trials, device=self._clip.device)
        self._decay = [None if decay is None else decay[chosen] for decay in self._decay]
        self._clip = self._clip[chosen]
        self._moments = [(mean[chosen], square[chosen]) for mean, square in self._moments]

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load` takes: tensors and numbers."""
        return {"steps": self._steps, "moments": self._moments}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of the same trials."""
        self._steps = state["steps"]
        self._moments = [(mean.clone(), square.clone()) for mean, square in state["moments"]]

    @torch.no_grad()
    def step(self, lr: Sequence[float]) -> None:
        """Take a step with each trial's learning rate, and forget the gradients."""
        self._steps += 1
        first, second = self._betas
        rate = self._clip.new_tensor(lr)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        norm = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        factor = (self._clip / (norm + 1e-6)).clamp(max=1)  # the constant is clip_grad_norm_'s
        for p, grad, (mean, square), decay in zip(self._parameters, grads, self._moments, self._decay, strict=True):
            grad.mul_(_as(factor, grad))
            if decay is not None:
                p.mul_(1 - _as(rate * decay, p))
            mean.lerp_(grad, 1 - first)
            square.mul_(second).addcmul_(grad, grad, value=1 - second)
            spread = (square.sqrt() / (1 - second**self._steps) ** 0.5).add_(self._eps)
            p.sub_(_as(rate / (1 - first**self._steps), p) * mean / spread)
            p.grad = None


def _as(values: Tensor, like: Tensor) -> Tensor:
    """Lay out one value a trial along the first dimension of another tensor."""
    return values.view(-1, *[1] * (like.ndim - 1))
