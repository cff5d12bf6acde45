"""Adapters of dense tasks: against torch's own layers on tokens that lie in a grid, and K at once against one."""

import pytest
import torch
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.sidenet.build import build_adapter, stack_adapters
from losa_cache.sidenet.dense import DenseAdapter
from losa_cache.train.stacked_adamw import StackedAdamW
from tests.sidenet.test_fast import tail_of

RANKS, RATES, DECAYS, CLIPS = [2, 3], [1e-2, 3e-2], [0.1, 0.0], [1.0, 0.1]
GRID, WIDTH, OUTPUTS, DEPTH = [2, 3], 8, 3, 3
TOKENS = 1 + GRID[0] * GRID[1]


def adapter(decoder="conv", head="all", side="losa", rank=2, seed=0, pool="token"):
    points = DEPTH if head == "all" else 1
    arguments = {"side": side, "depth": DEPTH if side == "losa" else 1, "tokens": TOKENS, "width": WIDTH, "rank": rank}
    arguments |= {"classes": OUTPUTS, "seed": seed, "head": head, "points": points, "grid": None}
    torch.manual_seed(2)
    return build_adapter(arguments | {"dense": {"decoder": decoder, "grid": GRID}}, tail_of(pool, WIDTH, 1)).double()


def shaken(own):
    """Give the matrices that start at zero other values."""
    torch.manual_seed(1)
    for p in own.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    return own


def places(decoder):
    return [length * (4 if decoder == "conv" else 1) for length in GRID]


def by_torch(own, blocks, head):
    """Maps of one decoder, as its definition says."""
    if head == "all":
        blocks = [F.layer_norm(block, (WIDTH,), eps=1e-6) for block in blocks]
    y = own.side.plain(blocks) if own.name == "losa" else blocks[-1]
    tokens = [*blocks[:-1], y] if head == "all" else [own.tail.fc_norm(own.tail.norm(y))]
    features = torch.cat(tokens, 2)[:, 1:].mT.unflatten(2, GRID)  # as an image of many channels
    mixed = features
    for at, layer in enumerate(own.before):
        weight = layer.weight[..., None, None] if at == 0 else layer.weight
        mixed = F.gelu(F.conv2d(mixed, weight, layer.bias, padding=at))
    read = torch.cat([features, mixed], 1) if len(own.before) else features
    found = F.conv2d(read, own.classifier.weight[..., None, None], own.classifier.bias)
    if not len(own.before):
        return found
    places = found.view(len(found), OUTPUTS, 4, 4, *GRID)  # rows and columns in a patch, then those of patches
    return places.permute(0, 1, 4, 2, 5, 3).reshape(len(found), OUTPUTS, 4 * GRID[0], 4 * GRID[1])


@pytest.mark.parametrize("side", ["losa", "linear"])
@pytest.mark.parametrize(("head", "pool"), [("all", "token"), ("last", "token"), ("last", "avg")])
@pytest.mark.parametrize("decoder", ["linear", "conv"])
def test_maps_are_those_of_convolutions_over_the_grid(decoder, head, pool, side):
    own = shaken(adapter(decoder, head, side, pool=pool))
    blocks = [torch.randn(4, TOKENS, WIDTH).double() for _ in range(DEPTH)]
    expected = by_torch(own, blocks, head)
    assert expected.shape == (4, OUTPUTS, *places(decoder))
    torch.testing.assert_close(own(blocks), expected)
    refined = own.refined(blocks)
    torch.testing.assert_close(own.outputs(*refined), expected)
    assert own.features(*refined).shape == (4, WIDTH)
    assert sum(own.parameter_counts().values()) == sum(p.numel() for p in own.parameters() if p.requires_grad)


@pytest.mark.parametrize(("decoder", "head"), [("conv", "all"), ("linear", "last")])
def test_trials_trained_together_end_where_each_ends_alone(decoder, head):
    torch.manual_seed(0)
    batches = [[torch.randn(5, TOKENS, WIDTH).double() for _ in range(DEPTH)] for _ in range(4)]
    targets = torch.randn(5, OUTPUTS, *places(decoder)).double()
    together, alone = ([adapter(decoder, head, rank=rank, seed=at) for at, rank in enumerate(RANKS)] for _ in range(2))
    start = together[0].classifier.weight.detach().clone()
    stack = stack_adapters(together)
    optimizer = StackedAdamW(stack.decayed(), weight_decay=DECAYS, clip_grad=CLIPS)
    for blocks in batches:
        (stack(blocks) - targets).square().flatten(1).mean(1).sum().backward()
        optimizer.step(RATES)
    stack.unstack(together)
    assert (together[0].classifier.weight - start).abs().max() > 1e-2
    for first, second, rate, decay, clip in zip(together, alone, RATES, DECAYS, CLIPS, strict=True):
        trained = [p for p in second.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        single = torch.optim.AdamW(groups, lr=rate)
        for blocks in batches:
            single.zero_grad()
            (second(blocks) - targets).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, clip)
            single.step()
        for p, q in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)
    stack.keep([1])
    torch.testing.assert_close(stack(blocks)[0], alone[1](blocks))


def test_refuses_what_gives_no_maps():
    with pytest.raises(lc.UserError, match="'attentive' gives one vector an image"):
        adapter(side="attentive")
    with pytest.raises(ValueError, match="7 tokens are not 3 x 3 patches"):
        sizes = {"depth": 1, "tokens": TOKENS, "width": WIDTH, "rank": 2, "classes": 2}
        DenseAdapter(
            **sizes, side="losa", tail=tail_of("token", WIDTH, prefix=1), dense={"decoder": "conv", "grid": [3, 3]}
        )
