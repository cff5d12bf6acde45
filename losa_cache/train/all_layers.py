"""A classifier over all layers beside the side network's own: its fit, its evaluation, its weight. *Not from the
paper*.

LoSA carries information of earlier layers through r columns into y_k. A probe on the pooled rows of all layers reads
these layers directly, takes seconds, and on small data sets is better than LoSA with the frozen tail. So a probe
(:mod:`losa_cache.probe.classes`) is fitted to convergence, the side network is trained beside it, and their logits are
added with weights that are best on held-out images. If the side network adds nothing to the probe, its weight is small.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.machine.memory import available_memory
from losa_cache.probe.folds import held_out_fold
from losa_cache.probe.kinds import PROBES
from losa_cache.probe.logistic import Fit
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.blend import Setting
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.tasks.base import ENOUGH
from losa_cache.train.batch import Source
from losa_cache.train.config import TrainConfig
from losa_cache.train.sampler import requests_in_order
from losa_cache.train.training_data import TrainingData

LEAST = 2  # training samples of a probe
FOLDS = 3  # fewer than losa-cache probe takes: a run begins a second sooner, with a setting that is close enough
SHARE = 0.25  # of the free host memory, for pooled rows
COPIES = 6  # of them, in float32, that a fit in float64 makes
MOST_WORK = 1e10  # samples x features x classes of a fit: it takes minutes on two CPU cores, and is not worth more
STANDARDISED = 4096  # training samples that say how rows are standardised if no probe is fitted: to about one per cent
NEIGHBOURS = 64  # of these that lie beside each other, so that few shards are opened
MOST_FOLDED = 5000  # samples up to which a probe is fitted several times: beyond, that costs more than an epoch

Progress = Callable[[float], None]
Rows = tuple[Tensor, Tensor]
"""Pooled rows, float32 ``(N, points, m, d)``, and targets (labels: int64 ``(N,)``), on the host."""


def start(
    model: Adapter | AdapterStack,
    data: TrainingData,
    config: TrainConfig,
    *,
    alone: bool = False,
    progress: Progress = lambda share: None,
) -> Rows | None:
    """Take the standardisation of the rows from the training samples, and fit the probe to them.

    Its setting is chosen on the held-out samples if there are enough of them, else by cross-validation over the
    training samples, which leaves groups whole. The loss decides, because logits that are too large would dominate
    those that are added to them. If the fit would take long, the probe is left out, with a share of 0: from so many
    samples the side network's classifier, which reads the same rows, learns as much. The probe is also left out if none
    learns the task. Without a probe a few thousand samples are read, so that the first step does not wait for a large
    cache.

    Args:
        model: whose reader, probe and ``blend`` are set.
        data: to learn from.
        config: the options.
        alone: leave the probe out, so that the side network alone is judged.
        progress: is called with the share of the samples that were read.

    Returns:
        the rows of all training samples, for :func:`refit`; ``None`` if that has nothing to do.

    Raises:
        UserError: for features that are not finite.
    """
    assert model.probe is not None and model.reader is not None and model.blend is not None
    chosen, features = data.chosen, model.probe.in_features
    outputs, device = model.probe.out_features, model.blend.share.device
    too_much = len(chosen.train) * features * outputs > MOST_WORK
    left_out = alone or too_much or len(chosen.train) < LEAST or not data.task.probes
    train = some(few(chosen.train) if left_out else chosen.train, features)
    rows, labels = pooled(model, data.source, data, train, config, progress)
    model.reader.standardise(rows.flatten(1, 2))
    if left_out:
        model.blend.share.copy_(torch.tensor([0.0, 1.0]))
        return None
    enough = len(chosen.held_out) >= ENOUGH or len(train) > MOST_FOLDED
    held_out = some(chosen.held_out, features) if enough else chosen.held_out[:0]
    more, theirs = pooled(model, data.plain, data, held_out, config)
    probe, targets = PROBES[data.task.probes], data.task.probe_targets
    x, y = torch.cat([rows, more]).flatten(1), targets(torch.cat([labels, theirs]))
    groups = None if chosen.groups is None else chosen.groups.values[train]
    folds = held_out_fold(len(train), len(held_out)) if len(held_out) else probe.folds(y, FOLDS, groups)
    model.blend.setting.copy_(torch.tensor(probe.choose(x, y, outputs, folds, device)))
    _set(model.probe, probe.fit(model.blend.chosen(), rows.flatten(1), targets(labels), outputs, device))
    return (rows, labels) if len(rows) == len(chosen.train) <= MOST_FOLDED else None


def refit(adapters: Sequence[Adapter], data: TrainingData, config: TrainConfig, seen: Rows | None = None) -> bool:
    """Fit the probe again to all samples, also the held-out ones, after the last validation.

    Args:
        adapters: trained adapters that share one probe, which is replaced in all of them.
        data: what they were trained on.
        config: the options.
        seen: rows of the training samples, if they were read already.

    Returns:
        whether the probe was fitted again: not without held-out samples, nor if the training samples are so many that
            these do not matter.
    """
    first, chosen = adapters[0], data.chosen
    if first.blend is None or first.probe is None or not first.probe.weight.any() or not len(chosen.held_out):
        return False
    everything = np.concatenate([chosen.train, chosen.held_out])
    if len(everything) > min(MOST_FOLDED, len(some(everything, first.probe.in_features))):
        return False
    rows, labels = pooled(first, data.source, data, chosen.train, config) if seen is None else seen
    more, theirs = pooled(first, data.plain, data, chosen.held_out, config)
    x, y = torch.cat([rows, more]).flatten(1), data.task.probe_targets(torch.cat([labels, theirs]))
    device = first.blend.share.device
    fit = PROBES[data.task.probes].fit(first.blend.chosen(), x, y, first.probe.out_features, device)
    for adapter in adapters:
        assert adapter.probe is not None
        _set(adapter.probe, fit)
    return True


def unfit(adapter: Adapter, data: TrainingData, config: TrainConfig, *, share: float, **setting: float) -> None:
    """Undo :func:`refit`, so that the adapter can be validated on the held-out samples.

    Args:
        adapter: as it was saved.
        data: what it was trained on.
        config: its options.
        share: weight of the probe's logits, which is folded into its weights.
        setting: that of the probe, by the names of :class:`~losa_cache.sidenet.blend.Setting`; earlier versions wrote
            ``c`` alone.
    """
    assert adapter.probe is not None
    rows, labels = pooled(adapter, data.source, data, data.chosen.train, config)
    task, device = data.task, adapter.probe.weight.device
    targets = task.probe_targets(labels)
    fit = PROBES[task.probes].fit(Setting(**setting), rows.flatten(1), targets, adapter.probe.out_features, device)
    _set(adapter.probe, Fit(share * fit.weight, share * fit.bias))
    task.fold_probe(adapter.probe)


@torch.no_grad()
def _set(probe: nn.Linear, fit: Fit) -> None:
    probe.weight.copy_(fit.weight)
    probe.bias.copy_(fit.bias)


def few(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Take ``STANDARDISED`` of the samples, neighbours from many places; all, if they are not more."""
    if len(samples) <= STANDARDISED:
        return samples
    starts = np.linspace(0, len(samples) - NEIGHBOURS, STANDARDISED // NEIGHBOURS).astype(np.int64)
    return samples[(starts[:, None] + np.arange(NEIGHBOURS)).reshape(-1)]


def some(samples: NDArray[np.int64], features: int) -> NDArray[np.int64]:
    """Take as many of the samples, evenly spaced, as fit in memory with so many features each."""
    most = int(SHARE * available_memory(torch.device("cpu")) / (4 * COPIES * features))
    if len(samples) <= most:
        return samples
    return samples[np.linspace(0, len(samples) - 1, max(1, most)).astype(np.int64)]


@torch.inference_mode()
def pooled(
    model: Adapter | AdapterStack,
    source: Source,
    data: TrainingData,
    samples: NDArray[np.int64],
    config: TrainConfig,
    progress: Progress = lambda share: None,
) -> Rows:
    """Read the pooled rows of samples: of plain images, or for videos the mean over the clips.

    Raises:
        UserError: for features that are not finite, naming the sample.
    """
    assert model.pooling is not None
    clips = data.manifest.clips
    rows = torch.zeros(len(samples), len(data.points), model.pooling.rows, data.manifest.width)
    labels = torch.empty(0, dtype=torch.int64)
    requests = requests_in_order(samples, config.batch_size, clips=clips)
    done = 0
    for request, batch in zip(requests, source.batches(requests), strict=True):
        part = slice(done, done + len(batch.ids))
        rows[part] += torch.stack([model.pooling.pooled(block) for block in batch.blocks], 1).cpu() / clips
        if not len(labels):
            labels = batch.labels.new_empty(len(samples), *batch.labels.shape[1:], device="cpu")
        labels[part] = batch.labels.cpu()
        if not bool(rows[part].isfinite().all()):
            wrong = batch.ids[int((~rows[part].flatten(1).isfinite().all(1)).nonzero()[0])]
            raise UserError(
                f"the features of sample {wrong!r} are infinite or not numbers: extract it with --precision bfloat16 "
                "or float32, or without that image, or train with --head last."
            )
        if request.view == clips - 1:
            done = part.stop
        progress(done / len(samples))
    source.spent()  # no part of the training
    return rows, labels


@torch.inference_mode()
def weigh(
    model: Adapter | AdapterStack,
    data: TrainingData,
    *,
    batch_size: int,
    progress: Progress = lambda share: None,
) -> list[dict[str, float]]:
    """Set the weights of the two logits to those that are best on the held-out samples; every clip of a video counts as
    a sample.

    Args:
        model: in evaluation.
        data: with held-out samples.
        batch_size, progress: as of ``losa_cache.train.evaluate.evaluate_each``.

    Returns:
        for each adapter the selection metric of each part alone, ``probe_top1`` and ``side_top1``; empty without a
        probe.
    """
    assert model.blend is not None and model.probe is not None
    if not model.probe.weight.any():
        return [{} for _ in model.blend.share.view(-1, 2)]
    held_out, clips, autocast = data.chosen.held_out, data.manifest.clips, data.autocast
    sides, probes, labels = [], [], []
    requests = requests_in_order(held_out, batch_size, clips=clips)
    for at, (_, batch) in enumerate(zip(requests, data.plain.batches(requests), strict=True)):
        with torch.autocast(batch.labels.device.type, autocast, enabled=autocast is not None):
            side, probe = model.both(batch.blocks)
        assert probe is not None
        sides.append(side.float().reshape(-1, *probe.shape).cpu())
        probes.append(probe.float().cpu())
        labels.append(batch.labels.cpu())
        progress((at + 1) / len(requests))
    each, shared, truth = torch.cat(sides, 1), torch.cat(probes), torch.cat(labels)
    task = data.task
    fit_shares, wanted = PROBES[task.probes].shares, task.probe_targets(truth)
    shares = torch.stack([fit_shares(shared, own, wanted) for own in each])
    model.blend.share.copy_(shares.view(model.blend.share.shape))
    both = (shared, *each)
    probe_only, *side_only = (task.selected_figure(task.predictions(logits[None]), truth) for logits in both)
    metric = task.selected_by
    return [{f"probe_{metric}": probe_only, f"side_{metric}": own} for own in side_only]
