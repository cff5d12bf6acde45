"""Encodings on a GPU: by Triton's kernels, by torch on the same GPU, and on the CPU."""

import copy

import pytest
import torch

from losa_cache.cache.precision import EncodedBatch, get_precision, layer_codec, token_codec
from losa_cache.cache.precision.backend import token_codec_on
from losa_cache.cache.precision.base import relative_error
from losa_cache.cache.precision.token_codec import NOT_FINITE
from losa_cache.machine.capture import without_collections
from losa_cache.machine.fastest import why_not_triton
from tests.encodings import assert_rounded_alike, assert_same_integers, bad

pytestmark = pytest.mark.cuda
PREDICTED = ["predict:0.25", "predict:1", "predict:2", "predict:20%"]
INTEGERS = ["int8", "int4"]


@pytest.fixture
def chain(gpu):
    if (reason := why_not_triton(gpu)) is not None:
        pytest.skip(reason)
    from losa_cache.cache.precision.kernels import chain

    return chain


def wide(samples, tokens, width, seed=0, layers=4):
    """Layers like those of a ViT: a fifth of the variance is new in each, along axes of falling variance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(42)
    spectrum = torch.arange(1, width + 1) ** -0.4
    spectrum /= spectrum.square().mean().sqrt()
    found = [torch.randn(samples, tokens, width, generator=generator)]
    for _ in range(layers - 1):
        axes = torch.linalg.qr(torch.randn(width, width, generator=mixing))[0]
        new = (torch.randn(samples, tokens, width, generator=generator) * spectrum) @ axes
        found.append((found[-1] + 0.2**0.5 * new) / 1.2**0.5)
    return found


def planes_of(batch):
    return list(batch.stored.unbind(1))


def places(values, layer, encoding):
    """A layer's codes and scales, to be filled, and a scalar."""
    batch, tokens, _ = values.shape
    codes = torch.zeros(batch, encoding.codecs[layer].token_bytes - 1, tokens, dtype=torch.uint8, device=values.device)
    return codes, torch.zeros(batch, tokens, dtype=torch.uint8, device=values.device), values.new_zeros(())


@pytest.mark.parametrize("name", PREDICTED)
@pytest.mark.parametrize(("samples", "tokens", "width", "prefix"), [(3, 38, 48, 2), (1, 197, 384, 1), (9, 49, 200, 0)])
def test_a_link_by_kernels_is_one_by_torch(name, samples, tokens, width, prefix, gpu, chain):
    """Layer by layer from the same values before. Products are the same; a sum in another order, or a multiplication
    that is contracted with an addition, moves a few scales and codes that lie on an edge by one step.
    """
    blocks = [block.to(gpu) for block in wide(40, 25, width)]
    encoding = get_precision(name).fit(blocks, tokens=tokens, prefix=prefix).to(gpu)
    before = None
    for layer, block in enumerate(bad([block.to(gpu) for block in wide(samples, tokens, width, seed=1)])):
        values, tables = block[:, prefix:], encoding.codecs[layer].tables
        ours, theirs = places(values, layer, encoding), places(values, layer, encoding)
        after = chain.encode(values, before, tables, *ours)
        expected = token_codec.encode(values, before, tables, *theirs)
        known = values.isfinite().all(-1)
        assert torch.equal(ours[1] == NOT_FINITE, ~known)
        assert ours[2].isnan() == theirs[2].isnan() == (~known).any()
        assert ((ours[1].int() - theirs[1].int()).abs() <= 1)[known].all()
        unlike = (ours[0] != theirs[0]).any(1) | (ours[1] != theirs[1])
        assert (unlike & known).float().mean() < 0.02 + 1.5 / known.numel()
        alike = (known & ~unlike).flatten()
        assert relative_error(after[alike], expected[alike]) < 2**-9
        into = [torch.empty(values.shape, dtype=torch.bfloat16, device=gpu) for _ in range(2)]
        decoded = chain.decode(theirs[0], theirs[1], before, tables, into[0])
        assert relative_error(decoded, token_codec.decode(theirs[0], theirs[1], before, tables, into[1])) < 2**-9
        assert torch.equal(into[0].isnan(), into[1].isnan())
        assert torch.equal(into[0].isnan().any(-1), ~known)
        assert relative_error(into[0].nan_to_num(0), into[1].nan_to_num(0)) < 2**-9
        filled = torch.empty_like(into[0])
        chain.fill(filled, decoded, theirs[1], tables)
        assert torch.equal(filled.nan_to_num(0), into[0].nan_to_num(0))
        token_codec.fill(into[1], decoded, theirs[1], tables)
        assert_rounded_alike(filled, into[1])
        before = expected


@pytest.mark.parametrize("name", PREDICTED)
@pytest.mark.parametrize("prefix", [0, 2])
def test_predicted_layers_decode_as_on_the_cpu(name, prefix, gpu, monkeypatch):
    encoding = get_precision(name).fit(wide(40, 21, 48), tokens=21, prefix=prefix)
    blocks = bad(wide(5, 21, 48, seed=1))
    on_gpu = EncodedBatch.of(encoding.to(gpu), [block.to(gpu) for block in blocks])
    stored = [plane.cpu() for plane in planes_of(on_gpu)]
    monkeypatch.setattr(layer_codec, "has_bfloat16", lambda _: True)
    reloaded = get_precision(name).load(encoding.constants(), tokens=blocks[0].shape[1], prefix=prefix)
    for own, expected, block in zip(
        encoding.to(gpu).decode(planes_of(on_gpu)), reloaded.decode(stored), blocks, strict=True
    ):
        assert torch.equal(own.isnan().cpu(), expected.isnan())
        assert torch.equal(own.isnan().any(-1).cpu(), ~block.isfinite().all(-1))
        assert relative_error(own.cpu().nan_to_num(0), expected.nan_to_num(0)) < 0.01
    reached = [relative_error(own, block) for own, block in zip(reloaded.decode(stored), blocks, strict=True)]
    wanted = [
        relative_error(own, block)
        for own, block in zip(reloaded.decode(planes_of(EncodedBatch.of(reloaded, blocks))), blocks, strict=True)
    ]
    assert reached == pytest.approx(wanted, rel=0.05)
    overflowed, non_finite = encoding.saturate(on_gpu.stored.cpu(), on_gpu.extremes.cpu())
    assert not overflowed.any()
    assert non_finite.sum() == sum(int((~block.isfinite().all(-1)).sum()) for block in blocks) * blocks[0].shape[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 96, 1280])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_have_the_bytes_and_values_of_the_cpu(name, width, dtype, gpu):
    blocks = [block.to(dtype) for block in wide(5, 38, width)]
    encoding = get_precision(name).fit(blocks, tokens=38, prefix=1)
    blocks = bad(blocks)
    blocks[0][1, 3] = 0
    theirs = EncodedBatch.of(encoding, blocks)
    ours = EncodedBatch.of(encoding.to(gpu), [block.to(gpu) for block in blocks])
    assert_same_integers(encoding.precision, width, ours.stored.cpu(), theirs.stored)
    assert torch.equal(ours.extremes.isfinite().cpu(), theirs.extremes.isfinite())
    for own, expected in zip(encoding.to(gpu).decode(planes_of(ours)), encoding.decode(planes_of(theirs)), strict=True):
        assert torch.equal(own.isnan().cpu(), expected.isnan())
        assert torch.equal(own.cpu().nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("name", ["predict:1", "predict:0.01", *INTEGERS])
def test_encoding_and_decoding_can_be_captured_and_replayed_on_other_values(name, gpu):
    """Nothing waits for the device, and no shape depends on values."""
    first, second = ([block.to(gpu) for block in blocks] for blocks in (wide(4, 38, 64), bad(wide(4, 38, 64, seed=1))))
    encoding = get_precision(name).fit(first, tokens=38, prefix=1).to(gpu)
    expected = EncodedBatch.of(encoding, second)
    values = encoding.decode(planes_of(expected))
    given = [block.clone() for block in first]
    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        encoding.decode(planes_of(EncodedBatch.of(encoding, given)))
    torch.cuda.current_stream(gpu).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with without_collections(), torch.cuda.graph(graph):
        captured = EncodedBatch.of(encoding, given)
        decoded = encoding.decode(planes_of(captured))
    for own, block in zip(given, second, strict=True):
        own.copy_(block)
    graph.replay()
    assert torch.equal(captured.stored, expected.stored)
    assert torch.equal(captured.extremes.isnan(), expected.extremes.isnan())
    for own, other in zip(decoded, values, strict=True):
        assert torch.equal(own.nan_to_num(0), other.nan_to_num(0))


@pytest.mark.parametrize("name", ["predict:1", *INTEGERS])
def test_an_empty_batch_and_one_image(name, gpu, chain):
    blocks = [block.to(gpu) for block in wide(4, 38, 64)]
    encoding = get_precision(name).fit(blocks, tokens=38, prefix=1).to(gpu)
    whole = EncodedBatch.of(encoding, blocks)
    empty = EncodedBatch.of(encoding, [block[:0] for block in blocks])
    assert [tuple(own.shape) for own in encoding.decode(planes_of(empty))] == [(0, 38, 64)] * 4
    one = encoding.decode(planes_of(EncodedBatch.of(encoding, [block[1:2] for block in blocks])))
    for own, other in zip(one, encoding.decode(planes_of(whole)), strict=True):
        assert relative_error(own, other[1:2]) < 0.02  # products of other shapes may add up in another order


@pytest.mark.parametrize("name", [*PREDICTED, *INTEGERS])
def test_encoding_twice_gives_the_same_bytes(name, gpu):
    blocks = [block.to(gpu) for block in wide(9, 50, 128)]
    encoding = get_precision(name).fit(blocks, tokens=50, prefix=1).to(gpu)
    first, again = EncodedBatch.of(encoding, blocks), EncodedBatch.of(copy.deepcopy(encoding), blocks)
    assert torch.equal(first.stored, again.stored)
    values = [encoding.decode(planes_of(own)) for own in (first, again)]
    assert all(map(torch.equal, *values))


def test_links_of_all_sizes_share_kernels(gpu, chain):
    """A kernel is compiled anew for a few alignments of numbers of tokens, not for a number of axes."""
    compiled = chain._store.device_caches[torch.cuda.current_device()][0]
    before = len(compiled)
    blocks = [block.to(gpu) for block in wide(20, 21, 96, layers=12)]
    encoding = get_precision("predict:2").fit(blocks, tokens=21, prefix=1).to(gpu)
    assert len({codec.bits for codec in encoding.codecs}) > 8
    assert token_codec_on(gpu) is chain
    encoding.decode(planes_of(EncodedBatch.of(encoding, blocks)))
    assert len(compiled) - before <= 4
