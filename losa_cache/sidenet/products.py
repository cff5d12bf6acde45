"""Products of activations with the low-rank matrices of side layers. They read every byte of the activations.

``x`` is ``(S or 1, batch, n, d)``: one activation for each of S trials, or one for all of them. A layer's kind says
which axis its matrices mix, of length m: d for ``CHANNEL``, n for ``TOKEN``; q is the other one. The forms were the
fastest with oneDNN on two AMX cores (bfloat16, ViT-B shapes): all trials' weights in one product, samples
as the batch of a token product, states transposed afterwards, since they are smaller than ``x`` by m / r.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNEL, TOKEN = 0, 1
FEW_ROWS, MANY_ROWS = 64, 256  # rows of all trials' weights at which another form is faster


def wide(x: Tensor) -> torch.dtype:
    """Give the dtype of y and of sums over many samples: float32, or wider if x is."""
    return torch.promote_types(x.dtype, torch.float32)


def compute_dtype(start: Tensor, weight: Tensor) -> torch.dtype:
    """Choose the dtype of the products: autocast's, or the wider of activations and weights."""
    if torch.is_autocast_enabled(start.device.type):
        return torch.get_autocast_dtype(start.device.type)
    return torch.promote_types(start.dtype, weight.dtype)


def project(kind: int, x: Tensor, weight: Tensor) -> Tensor:
    """Multiply along an axis: weight ``(S, R, m)`` gives ``(S, R, batch, q)``, strided."""
    shared, batch, n, d = x.shape
    trials, rows = weight.shape[:2]
    if kind == CHANNEL:
        if shared == 1 and trials * rows > FEW_ROWS:  # transposing the result would cost more than the product
            return (weight.reshape(trials * rows, d) @ x.reshape(batch * n, d).mT).view(trials, rows, batch, n)
        if shared == 1:
            found = F.linear(x.reshape(batch * n, d), weight.reshape(trials * rows, d))
            return found.view(batch, n, trials, rows).permute(2, 3, 0, 1)
        return torch.bmm(x.reshape(shared, batch * n, d), weight.mT).view(shared, batch, n, rows).permute(0, 3, 1, 2)
    if shared == 1:
        found = torch.bmm(weight.reshape(1, trials * rows, n).expand(batch, -1, -1), x[0])
        return found.view(batch, trials, rows, d).permute(1, 2, 0, 3)
    spread = weight[:, None].expand(-1, batch, -1, -1).reshape(trials * batch, rows, n)
    return torch.bmm(spread, x.reshape(-1, n, d)).view(trials, batch, rows, d).transpose(1, 2)


def correlate(kind: int, x: Tensor, states: Tensor) -> Tensor:
    """Give the gradient of ``project``'s weight, ``(S, R, m)``, from that of its result, ``(S, R, batch, q)``."""
    shared, batch, n, d = x.shape
    trials, rows = states.shape[:2]
    if kind == CHANNEL:
        if shared == 1:
            found = states.reshape(trials * rows, batch * n) @ x.reshape(batch * n, d)
            return found.view(trials, rows, d)
        return torch.bmm(states.flatten(2), x.reshape(shared, batch * n, d))
    if shared == 1:
        by_sample = states.permute(2, 0, 1, 3).reshape(batch, trials * rows, d)
        if trials * rows > FEW_ROWS:
            parts = [torch.bmm(part, x[0].mT).sum(0, dtype=wide(x)) for part in by_sample.split(MANY_ROWS, 1)]
            return torch.cat(parts).view(trials, rows, n)
        return torch.bmm(x[0], by_sample.mT).sum(0, dtype=wide(x)).mT.reshape(trials, rows, n)
    by_sample = states.transpose(1, 2).reshape(trials * batch, rows, d)
    found = torch.bmm(x.reshape(trials * batch, n, d), by_sample.mT).view(trials, batch, n, rows)
    return found.sum(1, dtype=wide(x)).mT


def update(states: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
    """Sum all updates, ``(S, batch, n, d)``: of each kind states, ``(S, R, batch, q)``, times ``(S, R, m)``."""
    channel, token = states
    trials, _, batch, n = channel.shape
    rows, d = token.shape[1], token.shape[3]
    found = torch.bmm(channel.flatten(2).mT, matrices[CHANNEL]).view(trials, batch, n, d)
    spread = matrices[TOKEN].mT[:, None].expand(-1, batch, -1, -1).reshape(trials * batch, n, rows)
    return found + torch.bmm(spread, token.transpose(1, 2).reshape(trials * batch, rows, d)).view_as(found)
