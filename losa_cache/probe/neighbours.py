"""Nearest neighbours and nearest class mean, by cosine. *Not from the paper*."""

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.probe.folds import Folds

NEIGHBOURS = (1, 5, 10, 20)
TEMPERATURE = 0.07
"""Of DINO's weighted vote (Caron et al., arXiv 2104.14294): a neighbour counts ``exp(cosine / 0.07)``."""
AT_ONCE = 1024


def vote(x: Tensor, y: Tensor, queries: Tensor, classes: int) -> dict[int, Tensor]:
    """Classify queries ``(Q, F)`` by their nearest samples among ``x`` ``(N, F)``, for every number of neighbours.

    Returns:
        by each of ``NEIGHBOURS`` that there are samples for: classes int64 ``(Q,)``.
    """
    counts = [k for k in NEIGHBOURS if k <= len(x)]
    known = F.normalize(x, dim=1)
    found: dict[int, list[Tensor]] = {k: [] for k in counts}
    for part in F.normalize(queries, dim=1).split(AT_ONCE):
        near, places = (part @ known.T).topk(counts[-1], dim=1)
        weights, labels = (near / TEMPERATURE).double().exp(), y[places]
        for k in counts:
            votes = weights.new_zeros(len(part), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            found[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def by_class_mean(x: Tensor, y: Tensor, queries: Tensor, classes: int) -> Tensor:
    """Classify queries ``(Q, F)`` by the nearest mean of a class's samples, all of length 1; int64 ``(Q,)``."""
    sums = x.new_zeros(classes, x.shape[1]).index_add_(0, y, F.normalize(x, dim=1))
    near = F.normalize(queries, dim=1) @ F.normalize(sums, dim=1).T
    present = torch.bincount(y, minlength=classes) > 0
    return near.masked_fill(~present, -torch.inf).argmax(1)


def choose_neighbours(x: Tensor, y: Tensor, classes: int, folds: Folds) -> tuple[int, float]:
    """Choose the number of neighbours by held-out accuracy, of equal ones the largest; give it and the top-1 (%)."""
    hits: dict[int, int] = {}
    for ours, theirs in folds.parts:
        for k, found in vote(x[ours], y[ours], x[theirs], classes).items():
            hits[k] = hits.get(k, 0) + int((found == y[theirs]).sum())
    k = max(hits, key=lambda k: (hits[k], k))
    return k, 100 * hits[k] / sum(len(theirs) for _, theirs in folds.parts)


def judge_class_mean(x: Tensor, y: Tensor, classes: int, folds: Folds) -> float:
    """Give the held-out top-1 (%) of the nearest class mean."""
    hits = sum(
        int((by_class_mean(x[ours], y[ours], x[theirs], classes) == y[theirs]).sum()) for ours, theirs in folds.parts
    )
    return 100 * hits / sum(len(theirs) for _, theirs in folds.parts)
