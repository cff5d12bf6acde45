"""Rounding, overflow, counting; and 8 and 4 bits against a plain re-derivation in numpy."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losa_cache.cache.precision import PRECISIONS, EncodedBatch, get_precision
from losa_cache.cache.precision_names import NAMES
from losa_cache.errors import UserError

FLOATS, INTEGERS = ("float32", "float16", "bfloat16"), ("int8", "int4")
LAYERS, TOKENS, WIDTH = 3, 6, 64


def encode(name, *blocks):
    encoding = get_precision(name).fit([], tokens=1, prefix=0)
    batch = EncodedBatch.empty(encoding, 1, (len(blocks), 1, len(blocks[0])), torch.device("cpu"))
    for layer, block in enumerate(blocks):
        batch.put(layer, torch.tensor(block, dtype=torch.float32).view(1, 1, -1))
    overflowed, non_finite = encoding.saturate(batch.stored, batch.extremes)
    return batch.stored, (overflowed.item(), non_finite.item())


def features(seed=0, samples=32):
    """Block outputs with a few large channels and a few large tokens."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(LAYERS, samples, TOKENS, WIDTH)).astype(np.float32)
    x[..., [3, 40]] *= 50
    x[:, :, 0] *= 100
    return [torch.from_numpy(block) for block in x]


@pytest.mark.parametrize(
    ("name", "numpy"), [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_values_are_rounded_to_nearest(name, numpy):
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values, counts = encode(name, x)
    assert np.array_equal(values.float().numpy().ravel(), x.astype(numpy).astype(np.float32))
    assert counts == (0, 0)


def test_float16_overflow_saturates_and_is_counted():
    values, counts = encode("float16", [1e5, -7e4, 1.0, 65504.0], [1.0, 2.0, 3.0, 4.0])
    assert values[0, 0].flatten().tolist() == [65504.0, -65504.0, 1.0, 65504.0]
    assert values[0, 1].flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert counts == (2, 0)


def test_values_just_beyond_the_range_are_counted_as_the_rounding_decides():
    _, counts = encode("float16", [65519.0, 65520.0])  # IEEE 754: 65520 is the first to round to infinity
    assert counts == (1, 0)


@pytest.mark.parametrize("name", FLOATS)
def test_what_the_backbone_gave_as_not_finite_stays_and_is_counted(name):
    values, counts = encode(name, [float("nan"), float("inf"), 1.0])
    assert counts == (0, 2)
    assert values.isnan().sum() == 1
    assert values.isinf().sum() == 1


def test_a_name_stands_for_the_precision_of_this_name():
    assert {name: precision.name for name, precision in PRECISIONS.items()} == {name: name for name in NAMES}
    assert get_precision("predict:1.5").bits == 1.5
    assert get_precision("predict:20%").error == 0.2


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_fill_value_decodes_as_nan(name):
    precision = get_precision(name)
    encoding = precision.fit(features(), tokens=TOKENS, prefix=1)
    planes, tokens, columns = encoding.stored_shape(LAYERS, TOKENS, WIDTH)
    filled = np.full((planes, 2, tokens, columns), precision.fill, dtype=precision.storage)
    decoded = encoding.decode(list(torch.from_numpy(filled).view(precision.stored_dtype)))
    assert all(block.isnan().all() for block in decoded)
    assert len(decoded) == LAYERS


def by_hand(block, sample, bits, group):
    """Section "Precision" of the protocol page, in numpy, from the block output: what a cache gives back."""
    channel = np.sqrt((sample.astype(np.float64) ** 2).mean(axis=(0, 1))).astype(np.float32)
    largest = 2 ** (bits - 1) - 1
    x = (block * (np.float32(1) / channel)).reshape(*block.shape[:2], -1, group)
    scale = (np.abs(x).max(-1, keepdims=True) * np.float32((1 + 2**-8) / largest)).astype(ml_dtypes.bfloat16)
    scale = scale.astype(np.float32)
    codes = np.rint(x / scale)
    assert np.abs(codes).max() <= largest, "clipped"
    return ((codes * scale).reshape(block.shape) * channel).astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize(("name", "bits", "group", "bound"), [("int8", 8, WIDTH, 0.01), ("int4", 4, 32, 0.15)])
def test_integers_are_as_the_protocol_says(name, bits, group, bound):
    sample = features()
    encoding = get_precision(name).fit(sample, tokens=TOKENS, prefix=1)
    for layer, block in enumerate(features(seed=1)):
        ours = encoding.round(layer, block, None)[0]
        assert ours.dtype == torch.bfloat16
        theirs = by_hand(block.numpy(), sample[layer].numpy(), bits, group)
        differing = ours.float().numpy() != theirs  # a product just at half a step may round either way
        assert differing.mean() < 1e-3
        error = float((ours.float() - block).norm() / block.norm())
        stated = encoding.describe()["error"][layer]
        assert error < bound
        assert stated / 1.6 < error < 1.6 * stated


@pytest.mark.parametrize("name", INTEGERS)
def test_outlier_tokens_do_not_cost_the_others_their_precision(name):
    block = features()[0]
    encoding = get_precision(name).fit([block], tokens=TOKENS, prefix=1)
    quiet = encoding.round(0, block, None)[0][:, 1:].float() - block[:, 1:]
    assert float(quiet.norm() / block[:, 1:].norm()) < 1.5 * encoding.describe()["error"][0]


@pytest.mark.parametrize("name", INTEGERS)
def test_values_that_are_not_finite_take_their_group_along_and_are_counted(name):
    block = features()[0]
    encoding = get_precision(name).fit([block], tokens=TOKENS, prefix=1)
    group = encoding.precision.group or WIDTH
    bad = block.clone()
    bad[1, 2, 5], bad[3, 4, 63] = torch.nan, -torch.inf
    batch = EncodedBatch.empty(encoding, 32, (1, TOKENS, WIDTH), torch.device("cpu"))
    batch.put(0, bad)
    overflowed, non_finite = encoding.saturate(batch.stored, batch.extremes)
    assert not overflowed.any()
    assert {at: count for at, count in enumerate(non_finite.tolist()) if count} == {1: group, 3: group}
    decoded = encoding.decode_layer(0, batch.stored[:, 0])
    assert decoded.isnan().sum() == 2 * group
    assert decoded[1, 2, :group].isnan().all()
    good = ~decoded.isnan()
    assert torch.equal(decoded[good], encoding.round(0, block, None)[0][good])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(INTEGERS), st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=WIDTH, max_size=WIDTH))
def test_any_finite_token_comes_back_within_half_a_step(name, values):
    block = torch.tensor(values).view(1, 1, WIDTH)
    encoding = get_precision(name).load({"channel": torch.ones(1, WIDTH)}, tokens=1, prefix=0)
    group, largest = encoding.precision.group or WIDTH, encoding.precision.largest
    decoded = encoding.round(0, block, None)[0].double()
    step = block.double().unflatten(-1, (-1, group)).abs().amax(-1, keepdim=True) * (1.02 / largest)
    allowed = (step / 2).expand(-1, -1, -1, group).flatten(-2) + block.double().abs() * 2**-7 + 1e-37
    assert ((decoded - block).abs() <= allowed).all()


def test_constants_rebuild_the_encoding():
    encoding = get_precision("int8").fit(features(), tokens=TOKENS, prefix=1)
    again = get_precision("int8").load(encoding.constants(), tokens=TOKENS, prefix=1)
    block = features(seed=2)[1]
    assert torch.equal(encoding.round(1, block, None)[0], again.round(1, block, None)[0])
    with pytest.raises(ValueError, match="not finite and positive"):
        get_precision("int8").load({"channel": torch.zeros(2, 4)}, tokens=TOKENS, prefix=1)


def test_unknown_precisions_and_widths_are_refused():
    with pytest.raises(UserError, match="float32, float16, bfloat16, int8, int4"):
        get_precision("int3")
    with pytest.raises(UserError, match="int4 stores groups of 32 channels, and the backbone has 100: choose int8"):
        get_precision("int4").require(100)
