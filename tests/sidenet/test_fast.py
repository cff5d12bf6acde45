"""The fast form against the plain form: the same numbers by another road, forward and backward."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import losa_cache as lc
from losa_cache.factors import Codes, Product
from losa_cache.sidenet.networks.mlp import LowRankMLP
from losa_cache.sidenet.operand import dense
from losa_cache.sidenet.readout import First, Mean, Whole
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.train.memory_check import needed_bytes

POOLS = ("token", "avg", "avg of unnormed", "max", "avgmax", "map")


def tail_of(pool, width, prefix):
    norm = {"type": "layernorm", "eps": 0.1, "affine": True, "bias": True}
    tail = FrozenTail(
        {
            "width": width,
            "prefix_tokens": prefix,
            "pool": pool.split()[0],
            "pool_prefix": prefix == 0,
            "class_tokens": max(1, prefix),
            "norm": {"type": "identity"} if "unnormed" in pool else norm,
            "fc_norm": {"type": "identity"},
            "map": {
                "heads": 1, "reduce": "token", "activation": "gelu", "latents": 1, "positions": 0, "bias": True,
                "q": True, "qk_norm": {"type": "identity"}, "norm": {"type": "identity"}, "hidden": 5,
            },
        }
    )  # fmt: skip
    for parameter in tail.parameters():
        nn.init.normal_(parameter, std=0.3)
    return tail


def random_network(kind=lc.LoSA, **sizes):
    network = kind(**sizes)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.3)
        if name.endswith("scale"):
            nn.init.normal_(parameter, mean=1, std=0.3)
    return network


def gradients(value, network):
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value.dtype)
    return torch.autograd.grad((value * weights).sum(), list(network.parameters()))


def relative(found, expected):
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def worst_error(network, fast, plain, same=None):
    """Give the larger relative error of the result and of any gradient, as a share of all gradients' norm."""
    found, expected = gradients(fast, network), gradients(plain, same or network)
    whole = torch.cat([gradient.flatten() for gradient in expected]).norm()
    errors = [((f - e).norm() / whole).item() for f, e in zip(found, expected, strict=True)]
    return max(relative(fast, plain), *errors)


@st.composite
def shapes(draw):
    width = draw(st.integers(3, 9))
    return {
        "depth": draw(st.integers(1, 9)),
        "tokens": draw(st.integers(2, 7)),
        "width": width,
        "rank": draw(st.integers(1, width)),
    }


@settings(max_examples=120, deadline=None)
@given(
    shapes(),
    st.sampled_from([lc.LoSA, LowRankMLP]),
    st.sampled_from(POOLS),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 10**6),
)
def test_float64_results_and_all_gradients_agree(sizes, kind, pool, batch, apart, segment, seed):
    torch.manual_seed(seed)
    network = random_network(kind, **sizes).double()
    tail = tail_of(pool, sizes["width"], prefix=seed % 2).double()
    shape = (batch, sizes["tokens"], sizes["width"])
    blocks = [torch.randn(shape, dtype=torch.float64) for _ in range(sizes["depth"] + apart)]
    network.segment_length = segment
    fast = tail.from_rows(network(blocks, tail.readout(sizes["tokens"])))
    assert worst_error(network, fast, tail(network.plain(blocks))) < 1e-12


@pytest.mark.parametrize("segment", [2, 5])
@pytest.mark.parametrize("rank", [4, 70])  # beyond 64 rows y_0 is added to the blocks, and products take other forms
def test_float64_agrees_at_a_real_shape(rank, segment):
    torch.manual_seed(0)
    network = random_network(depth=5, tokens=50, width=150, rank=rank).double()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.02 if "weight" in name else 0.5)
    blocks = [torch.randn(4, 50, 150, dtype=torch.float64) for _ in range(5)]
    network.segment_length = segment
    assert worst_error(network, network(blocks, First(50, 1)), network.plain(blocks)[:, :1]) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("readout", [First(50, 1), Mean(50, 1), Whole()])
def test_coarser_products_agree_within_their_rounding(dtype, tolerance, readout):
    torch.manual_seed(0)
    network = random_network(depth=6, tokens=50, width=96, rank=8)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.02 if "weight" in name else 0.5)
    blocks = [torch.randn(4, 50, 96).to(dtype) for _ in range(6)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        fast = network(blocks, readout)
    assert fast.dtype == torch.float32
    same = copy.deepcopy(network).double()
    exact = readout.rows(same.plain([block.double() for block in blocks]))
    assert worst_error(network, fast, exact, same) < tolerance


def test_y_0_that_is_trained_gets_its_gradient():
    torch.manual_seed(0)
    network = random_network(depth=5, tokens=5, width=6, rank=2).double()
    blocks = [torch.randn(2, 5, 6, dtype=torch.float64) for _ in range(5)]
    start = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    for length in (2, 5):
        network.segment_length = length
        fast, plain = network([*blocks, start], Mean(5, 1)), network.plain([*blocks, start])[:, 1:].mean(1)
        found, expected = (torch.autograd.grad(y.square().sum(), start)[0] for y in (fast, plain))
        assert relative(found, expected) < 1e-12


def codes(batch, tokens, width):
    return Codes(
        torch.randint(-127, 128, (batch, tokens, width), dtype=torch.int8),
        torch.rand(batch, tokens) / 100,
        torch.rand(width) + 0.5,
        torch.float64,
    )


@pytest.mark.parametrize(("rank", "kind"), [(3, lc.LoSA), (66, lc.LoSA), (3, LowRankMLP)])
def test_folded_codes_give_what_decoded_ones_give(rank, kind):
    torch.manual_seed(0)
    network = random_network(kind, depth=4, tokens=9, width=70, rank=rank).double()
    blocks = [codes(3, 9, 70) for _ in range(3)] + [torch.randn(3, 9, 70, dtype=torch.float64)]
    tensors = [*(b.codes.double() * b.tokens.double()[..., None] * b.channels.double() for b in blocks[:3]), blocks[3]]
    assert relative(dense(blocks)[0], tensors[0]) < 1e-6  # float32, as a cache decodes
    assert worst_error(network, network(blocks), network.plain(tensors)) < (1e-12 if rank == 3 else 1e-6)


def product(batch, tokens, width, prefix, count=11):
    left, right = torch.randn(count, batch, tokens - prefix), torch.randn(count, width)
    prefixed = torch.randn(batch, prefix, width)
    return Product(*(x.double() for x in (left, right, torch.randn(width), prefixed)), dtype=torch.float64)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(("rank", "kind"), [(3, lc.LoSA), (66, lc.LoSA), (3, LowRankMLP)])
def test_products_give_what_multiplied_ones_give(rank, kind, prefix):
    torch.manual_seed(0)
    network = random_network(kind, depth=4, tokens=9, width=70, rank=rank).double()
    blocks = [product(3, 9, 70, prefix) for _ in range(3)] + [torch.randn(3, 9, 70, dtype=torch.float64)]
    tensors = [
        *(torch.cat([b.prefix, torch.einsum("mbn,md->bnd", b.left, b.right) + b.mean], 1) for b in blocks[:3]),
        blocks[3],
    ]
    assert relative(dense(blocks)[0], tensors[0]) < 1e-12
    assert worst_error(network, network(blocks), network.plain(tensors)) < 1e-12


def test_memory_saved_for_backward_is_a_twentieth(monkeypatch):
    """At ViT-B's shape and rank 16, beside the block outputs themselves."""
    shape = (12, 197, 768)
    tail = tail_of("token", 768, prefix=1)
    adapter = lc.Adapter(side="losa", depth=12, tokens=197, width=768, rank=16, classes=10, tail=tail)
    blocks = 12 * 197 * 768 * 2

    def saved():
        found = [needed_bytes(adapter, shape, torch.bfloat16, batch, torch.bfloat16) for batch in (2, 1)]
        return found[0] - found[1] - blocks

    fast = saved()
    monkeypatch.setattr(adapter.side, "forward", lambda b, readout: readout.rows(adapter.side.plain(b)))
    assert fast * 20 < saved()
