"""The side network's kernels on a GPU: against the plain form, and against torch's products there."""

import pytest
import torch
from torch import nn

import losa_cache as lc
from losa_cache.factors import Codes
from losa_cache.sidenet.backend import use_backend
from losa_cache.sidenet.operand import Gathered, dense
from losa_cache.sidenet.pooled import Pooling
from losa_cache.sidenet.readout import First, Mean, Whole

pytestmark = pytest.mark.cuda
HALF = 2e-2  # of a gradient's norm: what rounding to bfloat16 costs either way


def network_of(depth, tokens, width, rank, device, kind=lc.LoSA):
    torch.manual_seed(0)
    network = kind(depth=depth, tokens=tokens, width=width, rank=rank)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.ndim else 0.3, mean=float(name.endswith("scale")))
    return network.to(device)


def blocks_of(form, depth, batch, tokens, width, device):
    generator = torch.Generator(device).manual_seed(0)

    def values(count):
        return torch.randn(count, tokens, width, dtype=torch.bfloat16, device=device, generator=generator)

    if form == "gathered":
        rows = torch.randperm(2 * batch, device=device)[:batch]
        return [Gathered(values(2 * batch), rows) for _ in range(depth - 1)] + [values(batch)]
    blocks = [values(batch) for _ in range(depth)]
    if form == "codes":
        for at, block in enumerate(blocks[:-1]):
            scales = (block.float().abs().amax(-1) / 127).bfloat16()
            codes = torch.empty(batch, tokens, width + 2, dtype=torch.int8, device=device)[..., :width]
            codes.copy_((block / scales[..., None]).round())
            blocks[at] = Codes(codes, scales, torch.rand(width, device=device) + 0.5, torch.bfloat16)
    return blocks


def results(network, blocks, readout, backend):
    with use_backend(backend), torch.autocast("cuda", torch.bfloat16):
        y = network(blocks, readout)
    weights = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    return [y, *torch.autograd.grad((y * weights).sum(), list(network.parameters()))]


def worst(found, expected):
    """Give the larger relative error of the result and of any gradient, as a share of all gradients' norm."""
    whole = torch.cat([tensor.flatten() for tensor in expected[1:]]).norm()
    errors = [(f.double() - e).norm() / whole for f, e in zip(found[1:], expected[1:], strict=True)]
    return max([(found[0].double() - expected[0]).norm() / expected[0].norm(), *errors]).item()


@pytest.mark.parametrize(
    ("depth", "batch", "tokens", "width", "rank", "form"),
    [
        (12, 64, 197, 768, 16, "values"),
        (12, 64, 197, 768, 16, "codes"),
        (12, 64, 197, 768, 16, "gathered"),
        (3, 16, 257, 1280, 64, "values"),
        (5, 3, 50, 384, 24, "codes"),
        (1, 2, 5, 64, 3, "values"),
    ],
)
def test_kernels_are_as_exact_as_torch(depth, batch, tokens, width, rank, form, gpu):
    network = network_of(depth, tokens, width, rank, gpu)
    blocks = blocks_of(form, depth, batch, tokens, width, gpu)
    readout = First(tokens, 1)
    ours, theirs = (results(network, blocks, readout, backend) for backend in ("triton", "torch"))
    network.double()
    plain = network.plain([block.double() for block in dense(blocks)])[:, :1]
    weights = torch.randn(plain.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    exact = [plain, *torch.autograd.grad((plain * weights).sum(), list(network.parameters()))]
    assert worst(ours, exact) < HALF
    assert worst(ours, exact) < 1.5 * worst(theirs, exact) + 1e-4


@pytest.mark.parametrize(("readout", "segment"), [(Mean(197, 1), 12), (Whole(), 6)])
def test_readouts_and_materialised_y(readout, segment, gpu):
    network = network_of(12, 197, 768, 16, gpu)
    network.segment_length = segment
    blocks = blocks_of("values", 12, 8, 197, 768, gpu)
    found, expected = (results(network, blocks, readout, backend) for backend in ("triton", "torch"))
    assert worst(found, [tensor.double() for tensor in expected]) < HALF


@pytest.mark.parametrize("ranks", [(16,) * 16, (64, 48)])
def test_stacked_trials(ranks, gpu):
    stack = lc.LoSAStack([network_of(6, 197, 384, rank, "cpu") for rank in ranks]).to(gpu)
    blocks = blocks_of("values", 6, 16, 197, 384, gpu)
    found, expected = (results(stack, blocks, First(197, 1), backend) for backend in ("triton", "torch"))
    assert worst(found, [tensor.double() for tensor in expected]) < HALF


def test_results_are_the_same_bits_every_time(gpu):
    network = network_of(12, 197, 768, 16, gpu)
    blocks = blocks_of("values", 12, 64, 197, 768, gpu)
    first, second = (results(network, blocks, First(197, 1), "triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_the_faster_backend_is_remembered(gpu, caplog):
    network = network_of(12, 197, 768, 16, gpu)
    blocks = blocks_of("values", 12, 64, 197, 768, gpu)
    caplog.set_level("INFO", logger="losa_cache.machine.fastest")
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        network(blocks, First(197, 1))
        network(blocks, First(197, 1))
    assert sum("side network of 12 layers" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize("form", ["values", "gathered"])
@pytest.mark.parametrize(("tokens", "width"), [(197, 768), (257, 384), (257, 1280), (257, 1664)])
def test_normed_blocks_and_their_rows_are_those_of_torch(tokens, width, form):
    block = blocks_of(form, 2, 16, tokens, width, "cuda")[0]
    pooling = Pooling(1, 1)
    normed, rows = pooling.by_triton(block)
    expected, means = pooling.by_torch(block)
    torch.testing.assert_close(normed.float(), expected.float(), rtol=2**-7, atol=1e-6)  # a step of bfloat16
    assert (normed != expected).double().mean() < 1e-3
    torch.testing.assert_close(rows, means, rtol=1e-5, atol=1e-5)
