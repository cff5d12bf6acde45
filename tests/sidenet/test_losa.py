"""LoSA against the paper's own figures, a plain re-derivation in numpy, and its own invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losa_cache as lc


def build(depth, tokens, width, rank):
    with torch.device("meta"):
        return lc.LoSA(depth=depth, tokens=tokens, width=width, rank=rank)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("rank", "exact", "millions"), [(4, 52_170, "0.05"), (8, 98_538, "0.10"), (16, 191_274, "0.19")]
)
def test_table_1_parameters(rank, exact, millions):
    found = count(build(12, 197, 768, rank))
    assert found == exact
    assert f"{found / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    ("layers", "exact", "millions", "gmacs"),
    [
        (1, 181_697, 0.184, 0.1),
        (2, 214_786, 0.217, 0.1),
        (4, 429_572, 0.431, 0.2),
        (8, 859_144, 0.861, 0.4),
        (40, 4_295_720, 4.298, 1.9),
    ],
)
def test_table_5_parameters_and_macs(layers, exact, millions, gmacs):
    network = build(layers, 256, 1408, 64)
    assert count(network) == exact
    assert count(network) / 1e6 == pytest.approx(millions, abs=0.003)
    assert network.macs / 1e9 == pytest.approx(gmacs, abs=0.1)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def by_hand(network, blocks):
    """Eq. 3-5, one sample at a time, on matrices n x d."""
    w = {name: value.numpy() for name, value in network.state_dict().items()}
    y = blocks[-1]
    for i, b in enumerate(blocks):
        x = b + y
        mixed = x if i % 2 == 0 else x.T
        hidden = gelu(mixed @ w[f"layers.{i}.down.weight"].T + w[f"layers.{i}.down.bias"])
        out = w[f"layers.{i}.scale"] * (hidden @ w[f"layers.{i}.up.weight"].T + w[f"layers.{i}.up.bias"])
        y = y + (out if i % 2 == 0 else out.T)
    return y


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6), st.data())
def test_forward_is_the_papers_equations(depth, tokens, width, seed, data):
    rank = data.draw(st.integers(1, width))
    torch.manual_seed(seed)
    network = lc.LoSA(depth=depth, tokens=tokens, width=width, rank=rank).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    blocks = [torch.randn(2, tokens, width, dtype=torch.float64) for _ in range(depth)]
    with torch.no_grad():
        found = network(blocks)
    assert found.dtype == torch.float64
    for sample in range(2):
        expected = by_hand(network, [b[sample].numpy() for b in blocks])
        np.testing.assert_allclose(found[sample].numpy(), expected, rtol=1e-12, atol=1e-11)


def test_starts_as_the_identity_on_the_last_block():
    blocks = [torch.randn(2, 5, 8) for _ in range(3)]
    assert torch.equal(lc.LoSA(depth=3, tokens=5, width=8, rank=2)(blocks), blocks[-1])


def test_half_precision_blocks_are_summed_in_float32():
    blocks = [torch.randn(2, 5, 8).bfloat16() for _ in range(2)]
    assert lc.LoSA(depth=2, tokens=5, width=8, rank=2)(blocks).dtype == torch.float32


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_refuses_ranks_outside_the_width(rank):
    with pytest.raises(lc.UserError, match=rf"rank is {rank}: .* 8"):
        lc.LoSA(depth=2, tokens=20, width=8, rank=rank)


def test_refuses_a_wrong_number_of_blocks():
    with pytest.raises(ValueError, match="takes 2 block outputs, not 4"):
        lc.LoSA(depth=2, tokens=5, width=8, rank=2)([torch.zeros(1, 5, 8)] * 4)
