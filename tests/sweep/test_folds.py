"""Cross-validation: parts that share no sample, and trials of several splits in one pass against each by itself."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.sweep.engine.folds import HeldOut, count_folds, parts_of
from losa_cache.tasks.classification import TASK
from losa_cache.train.batch import Batch, Request
from losa_cache.train.sampler import hold_out
from losa_cache.train.stacked_adamw import StackedAdamW
from losa_cache.train.step import StackStep

IDS = [f"image-{n}" for n in range(103)]


def test_parts_share_no_sample_and_the_first_is_what_a_run_holds_out():
    samples = np.arange(2, 103)
    parts = [hold_out(samples, IDS, 0.2, fold) for fold in range(5)]
    assert np.array_equal(parts[0][1], hold_out(samples, IDS, 0.2)[1])
    assert sorted(np.concatenate([held for _, held in parts])) == samples.tolist()
    assert {len(held) for _, held in parts} == {20, 21}
    for train, held in parts:
        assert sorted([*train, *held]) == samples.tolist()
    numbered = parts_of([held for _, held in parts[:2]], 103)
    assert [np.flatnonzero(numbered == fold).tolist() for fold in (0, 1)] == [held.tolist() for _, held in parts[:2]]
    assert (numbered[:2] == -1).all()


@pytest.mark.parametrize(
    ("samples", "fraction", "folds"), [(450, 0.2, 5), (1000, 0.2, 3), (1300, 0.2, 2), (2500, 0.2, 1), (450, 0.1, 10)]
)
def test_there_are_as_many_splits_as_judge_by_five_hundred_samples(samples, fraction, folds):
    assert count_folds(samples, fraction) == folds
    assert folds * fraction * samples >= 500 or folds * fraction == pytest.approx(1)


def test_trials_of_several_splits_train_as_each_does_on_its_own_samples_of_the_same_batches():
    """In float64, against torch's own AdamW and clipping; the last batch is all held out of the second trial."""
    generator = torch.Generator().manual_seed(0)
    none = {"type": "identity"}
    tail = FrozenTail(
        {
            "width": 8,
            "pool": "avg",
            "prefix_tokens": 1,
            "class_tokens": 1,
            "norm": none,
            "fc_norm": none,
            "pool_prefix": True,
        }
    )
    sizes = {"depth": 3, "tokens": 5, "width": 8, "classes": 4, "tail": tail}
    adapters = [Adapter(side="losa", rank=rank, seed=rank, **sizes).double() for rank in (2, 3, 3)]
    rates, decays, smoothings, clips, folds = (
        [0.03, 0.01, 0.05],
        [0.1, 0.0, 0.3],
        [0.0, 0.1, 0.2],
        [0.1, 1.0, 9.0],
        [0, 1, 0],
    )
    parts = np.array([0, 1, 1, 0, -1, 1, 0, -1, 1, 1])
    blocks = [torch.randn(10, 5, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    labels = torch.randint(4, (10,), generator=generator)
    alone = copy.deepcopy(adapters)
    stack = AdapterStack(adapters)
    optimizer = StackedAdamW(stack.decayed(), weight_decay=decays, clip_grad=clips)
    step = StackStep(
        stack,
        optimizer,
        task=TASK,
        options={"label_smoothing": smoothings},
        autocast=None,
        recorder=None,
        folds=folds,
        batch_size=4,
    )
    requests = [Request(np.array(own)) for own in ([4, 0, 1, 2], [7, 3, 5, 6], [8, 9])]
    held = HeldOut(parts, folds)
    step.rates.copy_(torch.tensor(rates, dtype=torch.float64))
    for request, own in zip(requests, held.batches(requests, torch.device("cpu")), strict=True):
        step.parts[: len(own)] = own
        step(Batch([block[request.samples] for block in blocks], labels[request.samples], []))
    stack.unstack(adapters)
    losses = step.loss.tolist()
    for trial, adapter in enumerate(alone):
        groups = [
            {"params": [p for p in adapter.parameters() if p.ndim >= 2], "weight_decay": decays[trial]},
            {"params": [p for p in adapter.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        single, summed = torch.optim.AdamW(groups, lr=rates[trial]), 0.0
        for request in requests:
            own = request.samples[parts[request.samples] != folds[trial]]
            logits = adapter([block[own] for block in blocks])
            loss = F.cross_entropy(logits, labels[own], label_smoothing=smoothings[trial], reduction="sum")
            (loss / max(1, len(own))).backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), clips[trial])
            single.step()
            single.zero_grad()
            summed += loss.item()
        assert losses[trial] == pytest.approx(summed, rel=1e-12)
        for (name, mine), theirs in zip(adapters[trial].named_parameters(), adapter.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)
    assert held.count(requests) == [int((parts != fold).sum()) for fold in folds]
    assert held.keep([1]).folds == [1]
