"""AdamW over tensors whose first dimension is the trial, each trial with its own rate, decay and clipping."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StackedAdamW:
    """``clip_grad_norm_`` and AdamW (Loshchilov and Hutter, 2019) as torch computes them, for K trials at once.

    All trained values of a trial are laid out in one row, those that are decayed first: a step is then some thirty
    operations, however many tensors there are. What a step changes stays at its address and is counted on the device,
    so that a CUDA graph can hold the step.

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
        order = sorted(range(len(parameters)), key=lambda at: not parameters[at][1])
        self._order = order  # of the parameters in a row
        self._parameters = [parameters[at][0] for at in order]
        self._sizes = [p[0].numel() for p in self._parameters]
        self._decayed = sum(decayed for _, decayed in parameters)
        like = self._parameters[0]
        self._decay, self._clip = like.new_tensor(weight_decay), like.new_tensor(clip_grad)
        self._first, self._second = betas
        self._eps = eps
        # In float64, because little of 1 - 0.999 is exact in float32.
        self._betas = torch.tensor(betas, dtype=torch.float64).to(like.device)
        self._steps = self._betas.new_zeros(())
        self._mean, self._square = (like.detach().new_zeros(len(like), sum(self._sizes)) for _ in range(2))

    def keep(self, trials: Sequence[int]) -> None:
        """Forget all trials but these; their parameters are cut by whoever owns them."""
        chosen = list(trials)
        self._decay, self._clip = self._decay[chosen], self._clip[chosen]
        self._mean, self._square = self._mean[chosen], self._square[chosen]

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load` takes: tensors and numbers."""
        laid_out = list(zip(self._split(self._mean), self._split(self._square), strict=True))
        moments = [laid_out[self._order.index(at)] for at in range(len(laid_out))]
        return {"steps": int(self._steps.item()), "moments": moments}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of the same trials, however far their ranks were filled up."""
        self._steps.fill_(state["steps"])
        moments = [state["moments"][at] for at in self._order]
        self._sizes = [mean[0].numel() for mean, _ in moments]
        self._mean, self._square = (
            torch.cat([moment.flatten(1) for moment in kind], 1).to(self._mean) for kind in zip(*moments, strict=True)
        )

    @torch.no_grad()
    def step(self, rates: Tensor | Sequence[float]) -> None:
        """Take a step with each trial's learning rate, ``(K,)``, and forget the gradients."""
        rate = torch.as_tensor(rates, dtype=self._clip.dtype, device=self._clip.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        grad = torch.cat([grad.flatten(1) for grad in grads], 1)
        values = torch.cat([p.flatten(1) for p in self._parameters], 1)
        norm = torch.linalg.vector_norm(grad, dim=1)
        grad *= (self._clip / (norm + 1e-6)).clamp(max=1)[:, None]  # the constant is clip_grad_norm_'s
        values[:, : sum(self._sizes[: self._decayed])] *= (1 - rate * self._decay)[:, None]
        self._mean.lerp_(grad, 1 - self._first)
        self._square.mul_(self._second).addcmul_(grad, grad, value=1 - self._second)
        self._steps += 1
        mean_share, square_share = (1 - self._betas**self._steps).unbind()
        spread = self._square.sqrt().div_(square_share.sqrt().to(grad.dtype)).add_(self._eps)
        values.addcdiv_(self._mean * (rate / mean_share.to(grad.dtype))[:, None], spread, value=-1)
        flat = [p.detach().flatten(1) for p in self._parameters]
        torch.split_with_sizes_copy(values, self._sizes, 1, out=flat)
        for p in self._parameters:
            p.grad = None

    def _split(self, flat: Tensor) -> list[Tensor]:
        """Give each parameter's part of all rows, in its shape."""
        parts = flat.split(self._sizes, 1)
        return [part.view(p.shape) for p, part in zip(self._parameters, parts, strict=True)]
