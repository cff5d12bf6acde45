"""Encodings by Triton's kernels, on the CPU by its interpreter, against what torch computes."""

import pytest
import torch

from losa_cache.cache.precision import EncodedBatch, get_precision, integers, layer_codec, predict_encoding
from losa_cache.machine.fastest import why_not_triton
from tests.cache.test_precision import WIDTH, features
from tests.cache.test_predict import PREFIX, fitted, stream
from tests.encodings import assert_rounded_alike, assert_same_integers, bad
from tests.interpreted import interpret


@pytest.fixture
def by_kernels(monkeypatch):
    """Switch kernels on, which devices without CUDA never choose."""
    interpret(monkeypatch)
    from losa_cache.cache.precision.kernels import chain

    def switch():
        monkeypatch.setattr(predict_encoding, "token_codec_on", lambda _: chain)
        monkeypatch.setattr(integers, "why_not_triton", lambda _: None)

    return switch


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "samples", "prefix"),
    [("predict:20%", 5, PREFIX), ("predict:3", 1, 0), ("predict:0.01", 2, PREFIX), ("predict:0.7", 2, 0)],
)
@pytest.mark.slow
def test_predicted_layers_have_the_same_bytes_and_values(name, samples, prefix, products, by_kernels, monkeypatch):
    """95, 21, 38 or 42 tokens, in tiles of 64; 0 to 48 axes, in tiles of 32; values that are not finite."""
    monkeypatch.setattr(layer_codec, "has_bfloat16", lambda _: products == torch.bfloat16)
    encoding, blocks = fitted(name, prefix=prefix), bad(stream(seed=1, samples=samples))
    theirs = EncodedBatch.of(encoding, blocks)
    planes = list(theirs.stored.unbind(1))
    values = encoding.decode(planes)
    rounded = [encoding.round(0, blocks[0], None)[0], values[0]]
    by_kernels()
    ours = EncodedBatch.of(encoding, blocks)
    same = ours.stored == theirs.stored
    for layer, block in enumerate(blocks):  # any code will do for a token that is not finite
        parts, equal = encoding._parts(encoding.place(ours.stored, layer), layer), encoding.place(same, layer)
        known = block[:, prefix:].isfinite().all(-1)
        if prefix:
            expected = encoding._parts(encoding.place(theirs.stored, layer), layer)
            assert_same_integers(predict_encoding.PREFIX, blocks[0].shape[-1], parts.prefix, expected.prefix)
        assert encoding._parts(equal, layer).scales.all()
        assert encoding._parts(equal, layer).codes.transpose(1, 2)[known].all()
        assert torch.equal(parts.scales == predict_encoding.NOT_FINITE, ~known)
    assert torch.equal(ours.extremes.isfinite(), theirs.extremes.isfinite())
    counts = [encoding.saturate(own.stored, own.extremes) for own in (ours, theirs)]
    assert all(map(torch.equal, *counts))
    for own, expected in zip(encoding.decode(planes), values, strict=True):
        assert_rounded_alike(own, expected)
    assert_rounded_alike(encoding.round(0, blocks[0], None)[0], rounded[0])
    assert len({len(own.bits) for own in encoding.codecs}) > 1 or name == "predict:0.01"


@pytest.mark.parametrize(
    ("name", "width", "dtype"),
    [
        ("int8", 50, torch.bfloat16),
        ("int4", 96, torch.float32),
        pytest.param("int8", WIDTH, torch.float32, marks=pytest.mark.slow),
        pytest.param("int4", WIDTH, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("int8", WIDTH, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("int8", 50, torch.float32, marks=pytest.mark.slow),
        pytest.param("int4", WIDTH, torch.float32, marks=pytest.mark.slow),
        pytest.param("int4", 96, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_integers_have_the_same_bytes_and_values(name, width, dtype, by_kernels):
    """Powers of two and not; a token of zeros, one of subnormal numbers, and values that are not finite."""
    blocks = [block.repeat(1, 1, 2)[2:5, :, :width].to(dtype) for block in features()]
    encoding = get_precision(name).fit(blocks, tokens=blocks[0].shape[1], prefix=1)
    blocks = bad(blocks)
    blocks[0][1, 3], blocks[0][1, 4] = 0, 1e-39
    blocks[0][2, 1, 3] = torch.finfo(torch.float32).max
    theirs = EncodedBatch.of(encoding, blocks)
    values = encoding.decode(list(theirs.stored.unbind(1)))
    by_kernels()
    ours = EncodedBatch.of(encoding, blocks)
    assert_same_integers(encoding.precision, width, ours.stored, theirs.stored)
    assert torch.equal(ours.extremes.isfinite(), theirs.extremes.isfinite())
    for own, expected in zip(encoding.decode(list(theirs.stored.unbind(1))), values, strict=True):
        assert own.view(torch.int16).equal(expected.view(torch.int16)) or own.nan_to_num().equal(expected.nan_to_num())
        assert own.isnan().equal(expected.isnan())


@pytest.mark.parametrize("name", ["predict:1", "int8", "int4"])
def test_an_empty_batch_is_encoded_and_decoded(name, by_kernels):
    blocks = features()
    encoding = get_precision(name).fit(blocks, tokens=blocks[0].shape[1], prefix=1)
    by_kernels()
    batch = EncodedBatch.of(encoding, [block[:0] for block in blocks])
    assert batch.extremes.tolist() == [0, 0, 0]
    assert [tuple(own.shape) for own in encoding.decode(list(batch.stored.unbind(1)))] == [(0, 6, WIDTH)] * 3


def test_a_cpu_does_without():
    assert why_not_triton(torch.device("cpu")) is not None
    assert predict_encoding.token_codec_on(torch.device("cpu")).__name__ == "losa_cache.cache.precision.token_codec"
