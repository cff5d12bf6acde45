"""A classifier over all layers beside the side network's own: fitted, judged, chosen. *Not from the paper*.

LoSA carries what earlier layers know through r columns into y_k. A probe on the pooled rows of all layers reads them at
once, costs seconds, and on small data sets is better than LoSA with the frozen tail. So the probe is fitted to the end
in closed form, the side network is trained beside it, and their logits are added in the shares that held-out images
ask for: where the side network knows nothing that the probe does not, its share is small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.memory import available_memory
from losa_cache.probe.blend import fit_shares
from losa_cache.probe.logistic import Fit, fit_path, standardise
from losa_cache.probe.tuning import ENOUGH, cross_validation, held_out_fold, tune
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.train.batch import Source
from losa_cache.train.config import TrainConfig
from losa_cache.train.material import Material
from losa_cache.train.sampler import requests_in_order

SHARE = 0.25  # of the free host memory, for pooled rows
COPIES = 6  # of them, in float32, that a fit in float64 makes
MOST_FOLDED = (
    5000  # training samples up to which C is chosen by cross-validation: beyond, folds cost more than an epoch
)

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Judged:
    """Figures of held-out samples.

    Attributes:
        figures: ``loss``, ``top1``, ``top5`` of the blended logits; ``probe_top1`` and ``side_top1`` of either alone.
        share: a and b, float64 ``(2,)``.
    """

    figures: dict[str, float]
    share: Tensor


def start(
    model: Adapter | AdapterStack, material: Material, config: TrainConfig, progress: Progress = lambda share: None
) -> None:
    """Fit the probe to the training samples, and take the standardisation of y_0's rows from them.

    C is chosen on the held-out samples where they are enough, else by cross-validation over the training samples.

    Args:
        model: whose probe and ``blend`` are set.
        material: to learn from.
        config: the options.
        progress: is given the share of the samples read.
    """
    assert model.probe is not None and model.blend is not None
    chosen, seed = material.chosen, 0
    train = some(chosen.train, model.probe.in_features)
    enough = len(chosen.held_out) >= ENOUGH or len(train) > MOST_FOLDED
    held_out = some(chosen.held_out, model.probe.in_features) if enough else chosen.held_out[:0]
    rows, labels = pooled(model, material, np.concatenate([train, held_out]), config, progress)
    classes, one = len(material.manifest.classes), held_out_fold(len(train), len(held_out))
    folds = one if len(held_out) else cross_validation(labels.numpy(), seed=seed)
    x, device = rows.flatten(1), model.blend.center.device
    model.blend.c.fill_(tune(x, labels, classes, folds, device).c)
    _fit(model, x[: len(train)], labels[: len(train)], classes)
    last = rows[: len(train), -1].double()
    model.blend.center.copy_(last.mean(0))
    model.blend.scale.copy_(1 / last.std(0, correction=0).clamp(min=torch.finfo(torch.float32).eps))


def finish(adapters: Sequence[Adapter], material: Material, config: TrainConfig) -> None:
    """Fit the probe again to training and held-out samples, with the same C, and fold all into the weights.

    Args:
        adapters: that :func:`start` began with, together or alone.
        material, config: as of :func:`start`.
    """
    first = adapters[0]
    assert first.probe is not None
    every = some(np.concatenate([material.chosen.train, material.chosen.held_out]), first.probe.in_features)
    rows, labels = pooled(first, material, every, config)
    _fit(first, rows.flatten(1), labels, len(material.manifest.classes))
    weights = {name: value.clone() for name, value in first.probe.state_dict().items()}
    for adapter in adapters:
        assert adapter.probe is not None
        adapter.probe.load_state_dict(weights)
        adapter.fold()


def _fit(model: Adapter | AdapterStack, x: Tensor, labels: Tensor, classes: int) -> None:
    assert model.probe is not None and model.blend is not None
    z, standardisation = standardise(x.to(model.blend.center.device))
    (fit,) = fit_path(z, labels, classes, [float(model.blend.c)])
    _set(model.probe, standardisation.folded(fit))


@torch.no_grad()
def _set(probe: nn.Linear, fit: Fit) -> None:
    probe.weight.copy_(fit.weight)
    probe.bias.copy_(fit.bias)


def some(samples: NDArray[np.int64], features: int) -> NDArray[np.int64]:
    """Take as many of the samples, evenly spaced, as have room in memory with so many features each."""
    most = int(SHARE * available_memory(torch.device("cpu")) / (4 * COPIES * features))
    if len(samples) <= most:
        return samples
    return samples[np.linspace(0, len(samples) - 1, max(1, most)).astype(np.int64)]


@torch.inference_mode()
def pooled(
    model: Adapter | AdapterStack,
    material: Material,
    samples: NDArray[np.int64],
    config: TrainConfig,
    progress: Progress = lambda share: None,
) -> tuple[Tensor, Tensor]:
    """Read the pooled rows of samples as they are: plain images; of videos the mean over the clips.

    Returns:
        float32 ``(N, points, m, d)`` and int64 ``(N,)``, on the host.
    """
    assert model.pooling is not None
    clips = material.manifest.clips
    rows = torch.zeros(len(samples), len(material.points), model.pooling.rows, material.manifest.width)
    labels = torch.zeros(len(samples), dtype=torch.int64)
    requests = requests_in_order(samples, config.batch_size, clips=clips)
    done = 0
    for request, batch in zip(requests, material.source.batches(requests), strict=True):
        part = slice(done, done + len(batch.ids))
        rows[part] += torch.stack([model.pooling(block) for block in dense(batch.blocks)], 1).cpu() / clips
        labels[part] = batch.labels.cpu()
        if request.view == clips - 1:
            done = part.stop
        progress(done / len(samples))
    material.source.spent()  # no part of the training
    return rows, labels


@torch.inference_mode()
def judge(
    both: Callable[[list[Block]], tuple[Tensor, Tensor | None]],
    source: Source,
    samples: NDArray[np.int64],
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    clips: int = 1,
    progress: Progress = lambda share: None,
) -> list[Judged]:
    """Fit the shares of K adapters on held-out samples and evaluate what they give.

    Args:
        both: gives logits ``(K, batch, classes)`` of the side networks' classifiers, and those of the probe.
        source, samples, batch_size, autocast, clips, progress: as of ``losa_cache.train.evaluate.evaluate_each``. The
            probabilities of a video's clips are averaged.
    """
    sides, probes, labels = [], [], []
    requests = requests_in_order(samples, batch_size, clips=clips)
    done = 0
    for request, batch in zip(requests, source.batches(requests), strict=True):
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            side, probe = both(batch.blocks)
        assert probe is not None
        sides.append(side.float().cpu())
        probes.append(probe.float().cpu())
        if request.view == 0:
            labels.append(batch.labels.cpu())
        done += len(batch.ids)
        progress(done / (len(samples) * clips))
    truth = torch.cat(labels)
    own = [torch.cat(sides[view::clips], 1) for view in range(clips)]
    shared = [torch.cat(probes[view::clips]) for view in range(clips)]
    return [_judged(torch.stack([view[at] for view in own]), torch.stack(shared), truth) for at in range(len(own[0]))]


def _judged(own: Tensor, probe: Tensor, labels: Tensor) -> Judged:
    """Judge one adapter by logits ``(clips, N, classes)``."""
    share = fit_shares(probe.flatten(0, 1), own.flatten(0, 1), labels.repeat(len(own)))
    a, b = share.float()
    found = torch.logsumexp(F.log_softmax(a * probe + b * own, -1), 0) - log(len(own))
    ranked = found.topk(min(5, found.shape[1])).indices == labels[:, None]
    figures = {
        "loss": float(F.nll_loss(found, labels)),
        "top1": _percent(ranked[:, 0]),
        "top5": _percent(ranked.any(1)),
        "probe_top1": _percent(probe.softmax(-1).sum(0).argmax(1) == labels),
        "side_top1": _percent(own.softmax(-1).sum(0).argmax(1) == labels),
    }
    return Judged(figures, share)


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
