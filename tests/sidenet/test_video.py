"""LoSA for video against Eq. 6 written out token by token, Table 2, and its bound on memory."""

import copy
import math

import pytest
import torch
from torch import nn

import losa_cache as lc
from losa_cache.factors import Codes
from losa_cache.sidenet.readout import First, Mean
from losa_cache.sidenet.video import VideoLoSA
from losa_cache.train.memory_check import saved_bytes

FRAMES, PLACES, PREFIX, WIDTH = 3, 4, 1, 6


def network(depth=5, **sizes):
    own = {"depth": depth, "frames": FRAMES, "places": PLACES, "prefix": PREFIX, "width": WIDTH, "rank": 2}
    built = VideoLoSA(**own | sizes)
    for name, parameter in built.named_parameters():
        nn.init.normal_(parameter, mean=float(name.endswith("scale")), std=0.4)
    return built.double()


def low_rank(w, x):
    """Eq. 4 on a vector."""
    hidden = w.down.weight @ x + w.down.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return w.scale * (w.up.weight @ hidden + w.up.bias)


def by_hand(net, blocks, prefix=PREFIX):
    """Eq. 3, 5 and 6 on one sample ``(n, d)``, a vector at a time."""
    y = blocks[-1].clone()
    for i, (g, b) in enumerate(zip(net.layers, blocks, strict=False)):
        x, update = b + y, torch.zeros_like(y)
        if i % 2 == 0:
            for token in range(len(x)):
                update[token] = low_rank(g, x[token])
        else:
            for channel in range(x.shape[1]):
                for frame in range(FRAMES):
                    own = [prefix + frame * PLACES + place for place in range(PLACES)]
                    update[own, channel] += low_rank(g.spatial, x[own, channel])
                for place in range(PLACES):
                    own = [prefix + frame * PLACES + place for frame in range(FRAMES)]
                    update[own, channel] += low_rank(g.temporal, x[own, channel])
        y = y + update
    return y


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_forward_and_gradients_are_equation_6_written_out(prefix):
    torch.manual_seed(0)
    net = network(prefix=prefix)
    blocks = [torch.randn(2, prefix + FRAMES * PLACES, WIDTH, dtype=torch.float64) for _ in range(5)]
    expected = torch.stack([by_hand(net, [b[sample] for b in blocks], prefix) for sample in range(2)])
    found = net(blocks)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        rows = net(blocks, Mean(prefix + FRAMES * PLACES, prefix))
        torch.testing.assert_close(rows[:, 0], expected[:, prefix:].mean(1))


def test_starts_as_the_identity_and_takes_y_0_apart_and_codes():
    fresh = VideoLoSA(depth=4, frames=FRAMES, places=PLACES, prefix=PREFIX, width=WIDTH, rank=2)
    blocks = [torch.randn(2, 13, WIDTH) for _ in range(5)]
    assert torch.equal(fresh(blocks), blocks[-1])
    net = network(depth=4)
    codes = [torch.randint(-9, 10, (2, 13, WIDTH), dtype=torch.int8) for _ in range(4)]
    start = torch.randn(2, 13, WIDTH, dtype=torch.float64)
    coded = [Codes(c, torch.ones(2, 13), torch.ones(WIDTH), torch.float64) for c in codes]
    assert torch.equal(net([*coded, start]), net([*(c.double() for c in codes), start]))


def test_a_layer_keeps_its_input_for_the_way_back_and_little_besides():
    """The states of its maps over time alone are as large as eight inputs."""

    def kept(depth):
        net = network(depth=depth, width=64, frames=4, places=16, prefix=0, rank=32).float()
        blocks = [torch.randn(1, 64, 64) for _ in range(depth)]
        return saved_bytes(lambda: net(blocks, First(64, 1)), (*blocks, *net.parameters()), None)

    ten_layers = kept(21) - kept(11)  # five of either kind; of a channel layer also its states, and of all alpha W_u
    assert ten_layers < 1.25 * 4 * 64 * (5 * 64 + 5 * (64 + 2 * 32))


@pytest.mark.parametrize(
    ("depth", "width", "claim"), [(32, 1280, 3.61), (40, 1408, 4.78), (48, 1664, 6.53), (56, 1792, 8.03)]
)
def test_table_2s_counts_are_higher_by_a_constant_share_of_the_width(depth, width, claim):
    with torch.device("meta"):
        net = VideoLoSA(depth=depth, frames=16, places=256, prefix=0, width=width, rank=64)
    count = sum(p.numel() for p in net.parameters())
    assert (claim * 1e6 - count) / width == pytest.approx(317, abs=12)


def test_training_an_adapter_of_a_grid_with_frames_uses_it():
    torch.manual_seed(0)
    config = {
        "width": WIDTH, "prefix_tokens": 0, "pool": "avg", "pool_prefix": True, "class_tokens": 0,
        "norm": {"type": "layernorm", "eps": 1e-6, "affine": False, "bias": False}, "fc_norm": {"type": "identity"},
    }  # fmt: skip
    adapter = lc.Adapter(
        side="losa", depth=4, tokens=12, width=WIDTH, rank=2, classes=3, tail=lc.FrozenTail(config), grid=(FRAMES, 2, 2)
    )
    assert isinstance(adapter.side, VideoLoSA)
    assert (adapter.side.prefix, adapter.side.layers[1].frames) == (0, FRAMES)
    again = copy.deepcopy(adapter)
    assert torch.equal(again([torch.ones(1, 12, WIDTH)] * 4), adapter([torch.ones(1, 12, WIDTH)] * 4))
