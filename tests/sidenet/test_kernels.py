"""Triton's kernels against torch's products and the plain form; here Triton's interpreter runs them, on the CPU."""

from itertools import product

import pytest
import torch
from torch import nn

import losa_cache as lc
from losa_cache.factors import Codes, Product
from losa_cache.sidenet.backend import norms_by_triton, use_backend
from losa_cache.sidenet.chain import Chain
from losa_cache.sidenet.kernels.backend import TritonBackend
from losa_cache.sidenet.kernels.values import by_kernels
from losa_cache.sidenet.networks.mlp import LowRankMLP
from losa_cache.sidenet.operand import Gathered, dense
from losa_cache.sidenet.pooled import Pooling
from losa_cache.sidenet.readout import First, Mean, Whole

SHAPES = {  # whole tiles and parts of them; ranks below, at and above what a product of matrices takes
    "one layer": {"depth": 1, "tokens": 5, "width": 32, "rank": 3},
    "small": {"depth": 5, "tokens": 7, "width": 32, "rank": 4},
    "many tokens": {"depth": 4, "tokens": 70, "width": 48, "rank": 16},
    "wide": {"depth": 3, "tokens": 9, "width": 160, "rank": 20},
}


def random_network(kind=lc.LoSA, seed=0, **sizes):
    torch.manual_seed(seed)
    network = kind(**sizes)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.1, mean=float(name.endswith("scale")))
    return network


def blocks_of(form, depth, tokens, width, batch=3):
    """Make block outputs, of which the last is y_0: a tensor."""
    if form == "gathered":
        rows = torch.tensor([4, 0, 2])
        found = [Gathered(torch.randn(5, tokens, width), rows) for _ in range(depth)]
        return [*found[:-1], found[-1].dense()]
    found = [torch.randn(batch, tokens, width) for _ in range(depth)]
    if form == "codes":  # codes of a token lie beside its scale, as in a cache
        for at in range(depth - 1):
            codes = torch.randint(-127, 128, (batch, tokens, width + 2), dtype=torch.int8)[..., :width]
            scales = (torch.rand(batch, tokens) / 64).bfloat16()
            found[at] = Codes(codes, scales, torch.rand(width), torch.float32)
    return found


def results(network, blocks, readout, backend):
    """Give y_k and all gradients."""
    with use_backend(backend):
        y = network(blocks, readout)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y, *torch.autograd.grad((y * weights).sum(), list(network.parameters()))]


def require_equal(found, expected, tolerance=1e-5):
    whole = torch.cat([tensor.flatten() for tensor in expected[1:]]).norm()
    assert (found[0] - expected[0]).norm() < tolerance * expected[0].norm()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs).norm() < tolerance * whole


def shapes_and_forms():
    """Each form once; the others are slow."""
    quick = {("one layer", "values"), ("small", "gathered"), ("many tokens", "codes")}
    for pair in product(SHAPES, ("values", "codes", "gathered")):
        yield pytest.param(*pair, marks=[] if pair in quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "form"), shapes_and_forms())
def test_results_and_gradients_are_those_of_the_plain_form(name, form):
    sizes = SHAPES[name]
    network = random_network(**sizes)
    blocks = blocks_of(form, sizes["depth"], sizes["tokens"], sizes["width"])
    found = results(network, blocks, First(sizes["tokens"], 1), "triton")
    plain = network.double().plain([block.double() for block in dense(blocks)])[:, :1]
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((plain * weights).sum(), list(network.parameters()))
    require_equal(found, [plain.float(), *(gradient.float() for gradient in gradients)])


@pytest.mark.parametrize("readout", [Mean(70, 1), Whole()])
@pytest.mark.parametrize("segment", [2, 4])
@pytest.mark.slow
def test_every_readout_and_materialised_y(readout, segment):
    network = random_network(**SHAPES["many tokens"])
    network.segment_length = segment
    blocks = blocks_of("values", 4, 70, 48)
    require_equal(results(network, blocks, readout, "triton"), results(network, blocks, readout, "torch"))


def test_layers_that_all_mix_channels():
    network = random_network(LowRankMLP, **SHAPES["small"])
    blocks = blocks_of("values", 5, 7, 32)
    require_equal(results(network, blocks, First(7, 1), "triton"), results(network, blocks, First(7, 1), "torch"))


@pytest.mark.parametrize(("ranks", "segment"), [((3, 5), 4), ((16, 30, 30), 4), ((3, 5), 2)])
@pytest.mark.slow
def test_stacked_trials(ranks, segment):
    stack = lc.LoSAStack(
        [random_network(seed=at, depth=4, tokens=9, width=32, rank=rank) for at, rank in enumerate(ranks)]
    )
    stack.segment_length = segment  # only the first chain reads a y that all trials share
    blocks = blocks_of("values", 4, 9, 32)
    require_equal(results(stack, blocks, First(9, 1), "triton"), results(stack, blocks, First(9, 1), "torch"))


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("readout", [First(7, 1), First(7, 2), Mean(7, 1), Whole()])
@pytest.mark.slow
def test_one_sample_and_none(readout, batch):
    network = random_network(**SHAPES["small"])
    blocks = blocks_of("values", 5, 7, 32, batch)
    found, expected = (results(network, blocks, readout, backend) for backend in ("triton", "torch"))
    assert found[0].shape == expected[0].shape
    if batch:
        require_equal(found, expected)


@pytest.mark.parametrize("rank", [4, 8, 20])
@pytest.mark.slow
def test_a_trial_that_is_no_number_any_more_leaves_its_neighbours_alone(rank):
    networks = [random_network(seed=at, depth=5, tokens=9, width=32, rank=rank) for at in range(3)]
    blocks = blocks_of("values", 5, 9, 32)
    alone = results(networks[0], blocks, First(9, 1), "torch")[0]
    networks[1].layers[0].scale.data.fill_(torch.nan)
    stack = lc.LoSAStack(networks)
    y, *gradients = results(stack, blocks, First(9, 1), "triton")
    assert torch.allclose(y[0], alone, atol=1e-4)
    for gradient in gradients:
        assert gradient[[0, 2]].isfinite().all()


def test_rows_that_each_layer_has_of_its_own():
    network = random_network(**SHAPES["small"])
    blocks = [Gathered(torch.randn(6, 7, 32), torch.randperm(6)[:3]) for _ in range(4)] + [torch.randn(3, 7, 32)]
    require_equal(results(network, blocks, First(7, 1), "triton"), results(network, blocks, First(7, 1), "torch"))


@pytest.mark.slow
def test_one_token_of_any_stride():
    network = random_network(depth=3, tokens=1, width=32, rank=4)
    blocks = [torch.randn(2, 32).as_strided((2, 1, 32), (32, 1, 1)) for _ in range(3)]
    require_equal(results(network, blocks, Mean(1, 0), "triton"), results(network, blocks, Mean(1, 0), "torch"))


@pytest.mark.slow
def test_half_precision_within_its_rounding():
    network = random_network(**SHAPES["many tokens"])
    blocks = [block.half() for block in blocks_of("values", 4, 70, 48)]
    exact = results(network, [block.float() for block in blocks], First(70, 1), "torch")
    with torch.autocast("cpu", torch.float16):  # the interpreter has no products in bfloat16
        found = results(network, blocks, First(70, 1), "triton")
    require_equal(found, exact, tolerance=3e-3)


def test_what_the_kernels_do_not_take():
    def takes(blocks, start, depth=1, rank=4, dtype=torch.float32):
        chain = Chain((0, 1) * depth, rank, First(4, 1), dtype, added=False)
        return TritonBackend().takes(chain, blocks, start)

    start = torch.zeros(1, 2, 4, 8)
    fine = torch.zeros(2, 4, 8)
    assert takes([fine], start)
    assert not takes([torch.zeros(2, 8, 4).mT], start)  # other order of axes
    assert not takes([torch.zeros(2, 4, 3)], start[..., :3])  # tokens that do not begin at whole words
    assert not takes([fine], torch.zeros(3, 2, 4, 8))  # y of each trial
    product = Product(torch.zeros(3, 2, 4), torch.zeros(3, 8), torch.zeros(8), torch.zeros(2, 0, 8), torch.float32)
    assert not takes([product], start)
    assert not takes([fine[:0]], start[:, :0])  # no samples
    assert not takes([fine], start, dtype=torch.float64)
    many = torch.empty(1, 1024, 257, 1792, device="meta")  # ViT-e
    assert takes([], many, depth=28, rank=16)
    assert not takes([], many, depth=28, rank=64)  # more states than 32 bits count


@pytest.mark.parametrize("form", ["values", "gathered"])
@pytest.mark.parametrize("pooling", [Pooling(1, 1), Pooling(1, 5), Pooling(0, 0), Pooling(2, 3)])
@pytest.mark.parametrize(("tokens", "width"), [(7, 32), (70, 48)])
def test_normed_blocks_and_their_rows_are_those_of_a_plain_layer_norm(tokens, width, pooling, form):
    block = blocks_of(form, 2, tokens, width)[0]
    with use_backend("triton"):
        assert norms_by_triton(block, pooling.by_triton, pooling.by_torch)
        normed, rows = pooling.normed(block)
    values = dense([block])[0].double()
    expected = (values - values.mean(-1, keepdim=True)) / (values.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normed, expected.float(), rtol=1e-5, atol=1e-5)
    means = [expected[:, pooling.prefix :].mean(1)]
    means = [expected[:, : pooling.classes].mean(1), *means] if pooling.classes else means
    torch.testing.assert_close(rows, torch.stack(means, 1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["values", "gathered"])
def test_rows_that_a_probe_reads_are_the_very_ones_that_a_step_reads(form):
    """Whether blocks lie normed on the device, or are normed where they are read: the same run comes of it."""
    block, pooling = blocks_of(form, 2, 70, 48)[0], Pooling(1, 1)
    with use_backend("triton"):
        assert torch.equal(pooling.pooled(block), pooling.normed(block)[1])
        kept = dense([block])[0].clone()
        assert torch.equal(pooling.pooled(block), pooling.norm_in_place([kept])[:, 0])
    assert torch.equal(pooling.pooled(block), pooling.normed(block)[1])


@pytest.mark.parametrize("rows", [((0, 2**40, 0, 0),), ((0, 96, 5, 0), (1, 80, 5, 0), (2, 2**45 + 16, 5, 0))])
def test_a_table_without_a_copy_from_the_host_is_the_same(rows):
    found = by_kernels(rows, torch.device("cpu"))
    assert found.dtype == torch.int64
    assert found.tolist() == [list(column) for column in zip(*rows, strict=True)]
