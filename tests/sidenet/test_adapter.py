"""What is trained, what is frozen, and where training starts."""

import pytest
import torch
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.tail import FrozenTail
from tests.conftest import tiny_backbone


def new(side, tail, seed=3, depth=4):
    return Adapter(side=side, depth=depth, tokens=5, width=32, rank=4, classes=3, tail=tail, seed=seed)


@pytest.fixture
def tail():
    return tiny_backbone().tail


@pytest.fixture
def blocks():
    return [torch.randn(6, 5, 32) for _ in range(4)]


def test_logits_at_step_0_are_exactly_the_linear_probes(tail, blocks):
    assert torch.equal(new("losa", tail)(blocks), new("linear", tail)(blocks))


def test_gradients_reach_every_trained_parameter_and_no_frozen_one(tail, blocks):
    adapter = new("losa", tail)
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        F.cross_entropy(adapter(blocks), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        # at the start W_u = 0, so nothing reaches W_d or alpha yet; after one step everything moves
        for name, parameter in adapter.named_parameters():
            if name.startswith("tail."):
                assert parameter.grad is None, name
            elif step == 1 or not (".down." in name or name.endswith(".scale")):
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()


def test_seed_decides_the_start_and_leaves_the_global_generator_alone(tail):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (new("losa", tail, seed=s).side.layers[0].down.weight for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapter_files_hold_no_frozen_tensors(tail):
    names = new("losa", tail).trained_state()
    assert names
    assert not any(name.startswith("tail") for name in names)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "token"])
def test_tail_without_backbone_pools_as_written(pool):
    config = {
        "width": 6,
        "prefix_tokens": 1,
        "pool": pool,
        "pool_prefix": False,
        "class_tokens": 1,
        "norm": {"type": "layernorm", "eps": 1e-6, "affine": False, "bias": False},
        "fc_norm": {"type": "identity"},
    }
    y = torch.randn(3, 5, 6)
    normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    patches = normed[:, 1:]
    expected = {
        "avg": patches.mean(1),
        "max": patches.amax(1),
        "avgmax": (patches.mean(1) + patches.amax(1)) / 2,
        "token": normed[:, 0],
    }[pool]
    torch.testing.assert_close(FrozenTail(config, {})(y), expected)
