"""The other side networks of Table 3 and the choice of segments, against the paper's figures and plain sums."""

import pytest
import torch

import losa_cache as lc
from losa_cache.sidenet.networks.ladder import Ladder
from losa_cache.sidenet.networks.mlp import LowRankMLP
from losa_cache.sidenet.networks.res_tuning import ResTuning
from losa_cache.sidenet.products import CHANNEL, TOKEN
from losa_cache.sidenet.segments import segment_length

VIT_G = {"depth": 40, "tokens": 256, "width": 1408}


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_low_rank_mlp_has_a_channel_layer_for_every_block():
    with torch.device("meta"):
        network = LowRankMLP(**VIT_G, rank=64)
        one = lc.LoSA(depth=1, tokens=256, width=1408, rank=64)
    assert count(network) == 40 * count(one) == 7_267_880  # Table 3: 7.7 M; it has 0.4 to 0.5 M more in every row
    assert network.macs == 40 * 2 * 64 * 256 * 1408


def test_ladder_has_table_3s_size_with_the_backbones_own_mlp_width():
    with torch.device("meta"):
        network = Ladder(**VIT_G, rank=48, hidden=6144)
    assert count(network) / 1e6 == pytest.approx(27, abs=0.5)
    assert network.macs / 1e9 == pytest.approx(274.9 - 267.4, abs=0.5)


def test_ladder_is_the_recurrence_it_says():
    torch.manual_seed(0)
    network = Ladder(depth=3, tokens=5, width=8, rank=4)
    torch.nn.init.normal_(network.up.weight)
    blocks = [torch.randn(2, 5, 8) for _ in range(4)]
    hidden = blocks[3] @ network.down[0].weight.T + network.down[0].bias
    for i in range(3):
        hidden = network.blocks[i](hidden + blocks[i] @ network.down[i + 1].weight.T + network.down[i + 1].bias)
    expected = blocks[3] + hidden @ network.up.weight.T + network.up.bias
    torch.testing.assert_close(network(blocks), expected)
    assert not torch.allclose(network(blocks), blocks[3])


def test_the_bypass_of_res_tuning_is_the_recurrence_it_says():
    torch.manual_seed(0)
    network = ResTuning(depth=3, tokens=5, width=8, rank=2)
    torch.nn.init.normal_(network.gate)
    blocks = [torch.randn(2, 5, 8) for _ in range(3)]

    def tuned(tuner, x):
        hidden = x @ tuner.down.weight.T + tuner.down.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return x + hidden @ tuner.up.weight.T + tuner.up.bias

    x = blocks[0]
    for i in (1, 2):
        share = 1 / (1 + torch.exp(-network.gate[i - 1]))
        x = share * tuned(network.lateral[i - 1], blocks[i]) + (1 - share) * tuned(network.vertical[i - 1], x)
    torch.testing.assert_close(network(blocks), x)
    assert count(network) == 4 * (2 * 8 * 2 + 2 + 8) + 2
    assert network.macs == 4 * 2 * 5 * 8 * 2


@pytest.mark.parametrize("kind", [Ladder, LowRankMLP])
def test_other_side_networks_start_as_the_probe_too(kind):
    blocks = [torch.randn(2, 5, 8) for _ in range(3)]
    assert torch.equal(kind(depth=3, tokens=5, width=8, rank=4)(blocks), blocks[-1])


def test_only_deep_networks_of_high_rank_materialise():
    alternating = [CHANNEL, TOKEN] * 20
    assert segment_length(alternating[:12], rank=16, tokens=197, width=768) == 12
    assert segment_length(alternating, rank=4, tokens=257, width=1408) == 40
    assert 1 < segment_length(alternating, rank=64, tokens=257, width=1408) < 20
