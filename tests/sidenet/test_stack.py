"""K adapters trained at once against the same K trained one by one, with torch's own optimiser."""

import pytest
import torch
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.losa_stack import LoSAStack
from losa_cache.sidenet.operand import dense
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.train.stacked_adamw import StackedAdamW
from tests.sidenet.test_fast import codes, tail_of

RANKS, RATES, DECAYS, CLIPS = [2, 4, 3], [1e-2, 3e-2, 1e-3], [0.0, 0.1, 0.01], [1.0, 0.1, 0.05]
TOKENS, WIDTH, CLASSES = 6, 8, 3


def adapters(tail, side, depth):
    return [
        Adapter(side=side, depth=depth, tokens=TOKENS, width=WIDTH, rank=rank, classes=CLASSES, tail=tail, seed=at)
        .double()
        for at, rank in enumerate(RANKS)
    ]  # fmt: skip


def train_alone(adapter, batches, *, rate, decay, clip):
    trained = [p for p in adapter.parameters() if p.requires_grad]
    matrices, rest = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    for blocks, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(adapter(blocks), labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()


def train_together(stack, batches):
    optimizer = StackedAdamW(stack.decayed(), weight_decay=DECAYS, clip_grad=CLIPS)
    for blocks, labels in batches:
        logits = stack(blocks)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(RANKS)), reduction="none")
        losses.view(len(RANKS), -1).mean(1).sum().backward()
        optimizer.step(RATES)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize(("side", "depth", "segment"), [("losa", 5, 5), ("losa", 5, 2), ("losa", 1, 1), ("mlp", 4, 4)])
def test_trials_trained_together_end_where_each_ends_alone(pool, side, depth, segment):
    torch.manual_seed(0)
    tail = tail_of(pool, WIDTH, prefix=1).double()
    batches = [
        ([torch.randn(7, TOKENS, WIDTH).double() for _ in range(depth)], torch.randint(0, CLASSES, (7,)))
        for _ in range(6)
    ]
    together, alone = adapters(tail, side, depth), adapters(tail, side, depth)
    start = [p.detach().clone() for p in together[0].parameters()]
    stack = AdapterStack(together)
    stack.side.segment_length = segment
    train_together(stack, batches)
    stack.unstack(together)
    assert max((p - q).abs().max() for p, q in zip(together[0].parameters(), start, strict=True)) > 1e-2
    for first, second, rate, decay, clip in zip(together, alone, RATES, DECAYS, CLIPS, strict=True):
        train_alone(second, batches, rate=rate, decay=decay, clip=clip)
        for p, q in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)


def test_rows_that_fill_a_rank_up_stay_zero():
    tail = tail_of("token", WIDTH, prefix=1).double()
    stack = AdapterStack(adapters(tail, "losa", 4))
    train_together(stack, [([torch.randn(7, TOKENS, WIDTH).double() for _ in range(4)], torch.arange(7) % CLASSES)] * 3)
    for own in stack.side.layers():
        assert own.down[0, :, : RANKS[0]].abs().min() > 0
        assert not own.down[0, :, RANKS[0] :].any()
        assert not own.up[0, :, RANKS[0] :].any()
        assert not own.down_bias[0, :, RANKS[0] :].any()


def test_a_stack_reads_codes_as_what_they_decode_to():
    torch.manual_seed(0)
    stack = AdapterStack(adapters(tail_of("token", WIDTH, prefix=1).double(), "losa", 4))
    for own in stack.side.layers():
        torch.nn.init.normal_(own.up, std=0.3)
    coded = [codes(5, TOKENS, WIDTH) for _ in range(3)]
    start = torch.randn(5, TOKENS, WIDTH).double()
    found, expected = stack([*coded, start]), stack([*dense(coded), start])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(y.square().sum(), stack.side.channel.down)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_refuses_networks_that_differ_in_more_than_rank():
    with pytest.raises(ValueError, match="one depth"):
        LoSAStack([LoSA(depth=2, tokens=5, width=8, rank=2), lc.LoSA(depth=3, tokens=5, width=8, rank=2)])
    with pytest.raises(ValueError, match="only losa, mlp, fusion or attentive can be stacked"):
        AdapterStack(adapters(tail_of("token", WIDTH, prefix=1), "ladder", 2))
