"""Attention by one query against the equations written out, stacks against single networks, and their noise."""

import math

import pytest
import torch
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.networks.attentive import Attentive
from losa_cache.sidenet.networks.fusion import Fusion
from losa_cache.sidenet.noise import GOLDEN, Noise, _mix
from losa_cache.sidenet.operand import dense
from losa_cache.sidenet.query import DROPPED, GATE, JITTERED
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.train.stacked_adamw import StackedAdamW
from tests.sidenet.test_fast import codes, tail_of
from tests.sidenet.test_stack import train_alone

TOKENS, WIDTH, CLASSES, DEPTH = 6, 8, 3, 3
RATES, DECAYS, CLIPS = [1e-2, 3e-2, 1e-3], [0.0, 0.1, 0.01], [1.0, 0.1, 0.05]


def adapter(side, seed=0, tokens=TOKENS, tail=None):
    depth = DEPTH if side == "fusion" else 1
    tail = tail_of("token", WIDTH, prefix=1) if tail is None else tail
    options = {"side": side, "depth": depth, "tokens": tokens, "width": WIDTH, "rank": 0, "classes": CLASSES}
    return Adapter(**options, tail=tail, seed=seed).double()


def away_from_the_start(network, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network


def blocks_of(count, batch=7, tokens=TOKENS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, WIDTH, generator=generator, dtype=torch.float64) for _ in range(count)]


def layer_norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def pooled_by_hand(blocks):
    normed = [(b - b.mean(-1, keepdim=True)) / (b.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt() for b in blocks]
    return torch.stack([row for b in normed for row in (b[:, 0], b[:, 1:].mean(1))], 1)


def attended_by_hand(net, rows, masks):
    """The published equations, one sample and head at a time, with the keys' bias, which cancels."""
    keys_bias = torch.randn(WIDTH, dtype=torch.float64)
    query = layer_norm(net.query) * net.query_scale + net.query_shift
    found = []
    for sample, mask in zip(rows, masks, strict=True):
        keys = (layer_norm(sample) * net.key_scale + keys_bias) @ net.to_keys.T
        values = (layer_norm(sample) * net.value_scale + net.value_shift) @ net.to_values.T
        size = len(net.to_query) // net.heads
        heads = []
        for head in range(net.heads):
            own = slice(head * size, (head + 1) * size)
            attention = torch.softmax(keys[:, own] @ (net.to_query[own] @ query) / math.sqrt(size), 0)
            heads.append((attention * mask[head]) @ values[:, own])
        found.append(net.out @ torch.cat(heads))
    return torch.stack(found)


@pytest.mark.parametrize("side", ["fusion", "attentive"])
def test_features_are_those_of_the_equations_in_evaluation_and_training(side):
    own = away_from_the_start(adapter(side, seed=3))
    net, blocks = own.side, blocks_of(DEPTH if side == "fusion" else 1)
    net.mean.normal_()
    net.variance.uniform_(0.5, 2)
    net.steps.fill_(11)
    plain = pooled_by_hand(blocks) if side == "fusion" else blocks[0]
    assert net.heads == (plain.shape[1] if side == "fusion" else 8)
    assert len(net.to_query) == net.heads * 2 * max(1, WIDTH // net.heads)

    own.eval()
    found = attended_by_hand(net, plain, torch.ones(7, net.heads, 1))
    expected = (found - net.mean) / (net.variance + 1e-5).sqrt() * net.scale + net.shift
    torch.testing.assert_close(own(blocks), own.classifier(expected), rtol=1e-10, atol=1e-10)

    own.train()
    step = net.steps.clone()
    kept = Noise(3, step, DROPPED).uniform((7, net.heads, plain.shape[1])) >= 0.1
    assert kept.any() and not kept.all()
    if side == "fusion":
        jittered = Noise(3, step, GATE).uniform((7, 1, 1)) < 0.5
        assert jittered.any() and not jittered.all()
        noise = Noise(3, step, JITTERED).normal(plain.shape)
        plain = plain / plain.norm(dim=-1, keepdim=True) + torch.where(jittered, 0.05 * noise.double(), 0.0)
    found = attended_by_hand(net, plain, kept / 0.9)
    mean, variance = 0.9 * net.mean + 0.1 * found.mean(0), 0.9 * net.variance + 0.1 * found.var(0)
    expected = (found - found.mean(0)) / (found.var(0, unbiased=False) + 1e-5).sqrt() * net.scale + net.shift
    torch.testing.assert_close(own(blocks), own.classifier(expected), rtol=1e-7, atol=1e-7)  # 1 / 0.9 is float32
    torch.testing.assert_close(net.mean, mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(net.variance, variance, rtol=1e-7, atol=1e-7)
    assert net.steps == step + 1


@pytest.mark.parametrize("side", ["fusion", "attentive"])
def test_trials_trained_together_end_where_each_ends_alone(side):
    together = [away_from_the_start(adapter(side), seed=at) for at in range(3)]
    alone = [away_from_the_start(adapter(side), seed=at) for at in range(3)]
    sizes = [7, 7, 1, 5, 7]  # a single sample has no statistics of its own
    depth = DEPTH if side == "fusion" else 1
    batches = [(blocks_of(depth, n, seed=at), torch.arange(n) % CLASSES) for at, n in enumerate(sizes)]
    start = together[0].side.to_keys.detach().clone()
    stack = AdapterStack(together)
    optimizer = StackedAdamW(stack.decayed(), weight_decay=DECAYS, clip_grad=CLIPS)
    for at, (blocks, labels) in enumerate(batches):
        if at == 3:  # the middle one is given up, and what is left goes through a checkpoint
            stack.keep([0, 2])
            optimizer.keep([0, 2])
            state = {name: value.clone() for name, value in stack.trained_state().items()}
            moments = optimizer.state()
            stack = AdapterStack([adapter(side), adapter(side)])
            optimizer = StackedAdamW(stack.decayed(), weight_decay=DECAYS[::2], clip_grad=CLIPS[::2])
            stack.load_trained(state)
            optimizer.load(moments)
        logits = stack(blocks)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        losses.view(len(logits), -1).mean(1).sum().backward()
        optimizer.step(RATES if at < 3 else RATES[::2])
    left = together[::2]
    stack.unstack(left)
    stack.eval()
    assert (left[0].side.to_keys - start).abs().max() > 1e-2
    for at, first in zip((0, 2), left, strict=True):
        second = alone[at]
        train_alone(second, batches, rate=RATES[at], decay=DECAYS[at], clip=CLIPS[at])
        assert second.side.steps == len(batches)
        for name, value in second.trained_state().items():
            torch.testing.assert_close(first.trained_state()[name], value, rtol=1e-10, atol=1e-10, msg=name)
        torch.testing.assert_close(stack(blocks_of(depth))[at // 2], second.eval()(blocks_of(depth)))


def test_a_stack_is_of_one_kind_one_shape_and_one_seed():
    kinds = [[adapter("fusion"), adapter("attentive")], [adapter("fusion"), adapter("fusion", seed=1)]]
    kinds.append([adapter("fusion"), adapter("fusion", tokens=1)])
    for mixed in kinds:
        with pytest.raises(ValueError, match="one kind, shape and seed"):
            AdapterStack(mixed)
    with pytest.raises(ValueError, match="only losa, mlp, fusion or attentive can be stacked"):
        linear = Adapter(side="linear", depth=1, tokens=TOKENS, width=WIDTH, rank=0, classes=2, tail=kinds[0][0].tail)
        AdapterStack([adapter("fusion"), linear])


def test_every_parameter_learns():
    for side, depth in (("fusion", DEPTH), ("attentive", 1)):
        own = away_from_the_start(adapter(side))
        F.cross_entropy(own(blocks_of(depth)), torch.arange(7) % CLASSES).backward()
        for name, parameter in own.named_parameters():
            if not name.startswith("tail."):
                assert parameter.grad.abs().max() > 1e-6, name


def test_fusion_takes_rows_that_were_pooled_before_and_codes_as_what_they_decode_to():
    full, pooled = (away_from_the_start(adapter("fusion", tokens=tokens)).eval() for tokens in (TOKENS, 2))
    blocks = blocks_of(DEPTH)
    rows = pooled_by_hand(blocks)
    found = pooled([rows[:, 2 * at : 2 * at + 2] for at in range(DEPTH)])
    torch.testing.assert_close(found, full(blocks), rtol=1e-9, atol=1e-9)
    coded = [codes(7, TOKENS, WIDTH) for _ in range(DEPTH)]
    assert torch.equal(full(coded), full(dense(coded)))
    assert torch.equal(
        away_from_the_start(adapter("attentive")).eval()(coded),
        away_from_the_start(adapter("attentive")).eval()(dense(coded)),
    )


def test_a_trunk_without_a_class_token_has_one_row_a_block():
    own = adapter("fusion", tail=tail_of("avg", WIDTH, prefix=0)).eval()
    assert own.side.heads == DEPTH
    assert own.side.rows(blocks_of(DEPTH)).shape == (7, DEPTH, WIDTH)


def test_parameters_are_counted_as_published_but_for_two_biases_that_cancel():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    with torch.device("meta"):
        tail = tail_of("token", 384, prefix=1)
        own = Adapter(side="fusion", depth=12, tokens=257, width=384, rank=8, classes=10, tail=tail)
        attentive = Adapter(side="attentive", depth=1, tokens=257, width=384, rank=8, classes=10, tail=tail)
        assert isinstance(own.side, Fusion) and isinstance(attentive.side, Attentive)
    inner = 24 * (384 // 24) * 2
    published = 3 * 384 * inner + (inner * 384 + 384) + 3 * 2 * 384 + 384 + 2 * 384  # q k v, out, norms, query, batch
    assert (
        own.parameter_counts()
        == {"side": published - 2 * 384, "classifier": 3850}
        == {"side": 1_182_720, "classifier": 3850}
    )
    assert count(attentive.side) == count(own.side)  # 8 heads of 96 channels, or 24 of 32


def test_noise_is_splitmix64_normal_and_another_one_for_every_seed_step_and_stream():
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    bits = _mix(torch.arange(1, 6) * GOLDEN + 1234567)  # the generator's published test, of seed 1234567
    assert [int(value) % 2**64 for value in bits] == known

    step = torch.tensor(4)
    first = Noise(7, step, 1).normal((501, 301))
    assert torch.equal(first, Noise(7, step, 1).normal((501, 301)))
    others = [Noise(8, step, 1), Noise(7, step + 1, 1), Noise(7, step, 2)]
    draws = [first, first.roll(1, 0), first.roll(1, 1), *(other.normal(first.shape) for other in others)]
    error = first.numel() ** -0.5
    assert all(abs((first * other).mean()) < 4 * error for other in draws[1:])
    values = first.flatten().double()
    assert abs(values.mean()) < 4 * error
    assert abs(values.square().mean() - 1) < 4 * error * 2**0.5
    assert abs(values.pow(4).mean() - 3) < 4 * error * 96**0.5
    share = Noise(7, step, 3).uniform((400, 401))
    assert share.min() > 0
    assert share.max() < 1
    assert abs((share < 0.1).float().mean() - 0.1) < 4 * 0.3 / 400
