"""Trials that train together on a GPU end where each ends alone, and where they end on the CPU."""

import copy

import pytest
import torch
from torch.nn import functional as F

from losa_cache.sidenet.stack import AdapterStack
from losa_cache.train.stacked_adamw import StackedAdamW
from tests.sidenet.test_fast import tail_of
from tests.sidenet.test_stack import (
    CLASSES,
    CLIPS,
    DECAYS,
    RANKS,
    RATES,
    TOKENS,
    WIDTH,
    adapters,
    train_alone,
    train_together,
)

pytestmark = pytest.mark.cuda


def batches(depth, count=6):
    torch.manual_seed(0)
    shape = (7, TOKENS, WIDTH)
    return [
        ([torch.randn(shape, dtype=torch.float64) for _ in range(depth)], torch.randint(0, CLASSES, (7,)))
        for _ in range(count)
    ]


def moved(given, device):
    return [([block.to(device) for block in blocks], labels.to(device)) for blocks, labels in given]


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize(("side", "depth"), [("losa", 5), ("losa", 1), ("mlp", 4)])
def test_trials_trained_together_end_where_each_ends_alone_and_on_the_cpu(pool, side, depth, gpu):
    tail, given = tail_of(pool, WIDTH, prefix=1).double(), batches(depth)
    on_the_cpu = adapters(copy.deepcopy(tail), side, depth)
    ours, alone = ([a.to(gpu) for a in adapters(copy.deepcopy(tail), side, depth)] for _ in range(2))
    for members, device in ((on_the_cpu, "cpu"), (ours, gpu)):
        stack = AdapterStack(members)
        train_together(stack, moved(given, device))
        stack.unstack(members)
    for at, (mine, theirs, single) in enumerate(zip(ours, on_the_cpu, alone, strict=True)):
        train_alone(single, moved(given, gpu), rate=RATES[at], decay=DECAYS[at], clip=CLIPS[at])
        for p, q, r in zip(mine.parameters(), theirs.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(p.cpu(), q.cpu(), rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(p, r, rtol=1e-8, atol=1e-8)


def test_half_precision_steps_of_a_stack_stay_near_exact_ones(gpu):
    """Autocast as training uses it; the loss of every step of every trial."""
    losses, tail = {}, tail_of("token", WIDTH, prefix=1).double()
    for dtype in (None, torch.bfloat16):
        members = [adapter.float().to(gpu) for adapter in adapters(copy.deepcopy(tail), "losa", 5)]
        stack = AdapterStack(members)
        optimizer = StackedAdamW(stack.decayed(), weight_decay=DECAYS, clip_grad=CLIPS)
        found = []
        for blocks, labels in moved(batches(5, 1) * 12, gpu):
            with torch.autocast(gpu.type, dtype or torch.bfloat16, enabled=dtype is not None):
                logits = stack([block.float() if dtype is None else block.to(dtype) for block in blocks])
            own = F.cross_entropy(logits.float().flatten(0, 1), labels.repeat(len(RANKS)), reduction="none")
            own = own.view(len(RANKS), -1).mean(1)
            own.sum().backward()
            optimizer.step(RATES)
            found.append(own.detach())
        losses[dtype] = torch.stack(found)
    torch.testing.assert_close(losses[torch.bfloat16], losses[None], rtol=3e-2, atol=3e-2)
    assert (losses[None][0] - losses[None][-1]).abs().max() > 0.1
