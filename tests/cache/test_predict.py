"""Layers predicted from the one before: against the protocol page, theory, outliers and damage."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losa_cache.cache.precision import EncodedBatch, bitplanes, get_precision, layer_codec
from losa_cache.cache.precision.allocation import DISTORTION, STEP, allocate
from losa_cache.cache.precision.base import relative_error
from losa_cache.errors import UserError

LAYERS, TOKENS, WIDTH, PREFIX = 4, 21, 48, 2


def stream(seed=0, samples=40, *, layers=LAYERS, tokens=TOKENS):
    """A residual stream: each layer is a fixed matrix of the one before, and something new of low rank and noise."""
    mixing = np.random.default_rng(42)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, tokens, WIDTH)) * np.geomspace(8, 0.5, WIDTH) + mixing.normal(size=WIDTH)
    found = [x]
    for _ in range(layers - 1):
        turn = np.eye(WIDTH) + 0.3 * mixing.normal(size=(WIDTH, WIDTH)) / math.sqrt(WIDTH)
        new = rng.normal(size=(samples, tokens, 6)) @ mixing.normal(size=(6, WIDTH))
        x = x @ turn + 0.3 * new + 0.2 * rng.normal(size=x.shape) + mixing.normal(size=WIDTH)
        found.append(x)
    return [torch.from_numpy(block).float() for block in found]


def fitted(name, blocks=None, prefix=PREFIX):
    blocks = stream() if blocks is None else blocks
    return get_precision(name).fit(blocks, tokens=blocks[0].shape[1], prefix=prefix)


def decoded(encoding, blocks):
    return encoding.decode(list(EncodedBatch.of(encoding, blocks).stored.unbind(1)))


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=20).map(lambda bits: sorted(bits, reverse=True)),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_codes_of_any_bits_come_back_from_bytes(bits, tokens, seed):
    bits = [*bits, *[1] * (-sum(bits) % 8)]
    codes = np.stack([np.random.default_rng(seed + k).integers(0, 2**own, tokens) for k, own in enumerate(bits)])
    codes = torch.from_numpy(codes.astype(np.uint8))
    planes = bitplanes.BitPlanes.of(bits)
    packed = bitplanes.pack(codes, planes)
    assert packed.shape == (sum(bits) // 8, tokens)
    assert torch.equal(bitplanes.unpack(packed, planes), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_table_of_quantisers_is_that_of_the_best_uniform_ones(bits):
    """Max 1960, Table II, by integration anew: the step's error on a normal variable, and that no other is better."""
    x = np.linspace(-9, 9, 1_000_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])

    def error(step):
        code = np.clip(np.floor(x / step + 2 ** (bits - 1)), 0, 2**bits - 1)
        return float(((x - (code - (2**bits - 1) / 2) * step) ** 2 * density).sum())

    assert error(STEP[bits]) == pytest.approx(DISTORTION[bits], rel=5e-3)
    assert error(STEP[bits]) <= min(error(STEP[bits] * 0.97), error(STEP[bits] * 1.03))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=24), st.integers(0, 20))
def test_no_bit_would_be_better_spent_elsewhere(variances, eighths):
    budget = min(8 * eighths, 8 * len(variances))
    bits = allocate(variances, bits=budget)
    assert sum(bits) == budget
    gains = [v * (DISTORTION[k] - DISTORTION[k + 1]) for v, k in zip(variances, bits, strict=True) if k < 8]
    losses = [v * (DISTORTION[k - 1] - DISTORTION[k]) for v, k in zip(variances, bits, strict=True) if k > 0]
    if gains and losses:
        assert max(gains) <= min(losses) * (1 + 1e-9)


def test_bits_are_spent_until_the_error_is_small_enough():
    variances = np.geomspace(100, 0.01, 40).tolist()
    bits = allocate(variances, distortion=30.0)
    left = sum(v * DISTORTION[k] for v, k in zip(variances, bits, strict=True))
    assert left <= 30
    assert sum(bits) % 8 == 0
    fewer = allocate(variances, bits=sum(bits) - 8)
    assert sum(v * DISTORTION[k] for v, k in zip(variances, fewer, strict=True)) > 30


def by_hand(row, constants, tokens=TOKENS, prefix=PREFIX):
    """Section "Prediction" of the protocol page, token by token, from the bytes of a row."""
    mean, bits = constants["mean"].astype(np.float64), constants["bits"]
    found, before, at, first_axis = [], None, 0, 0
    for layer in range(len(mean)):
        width, count = mean.shape[1], int((bits[layer] > 0).sum())
        own = [int(k) for k in bits[layer, :count]]
        ends = row[at : at + prefix * (width + 2)].reshape(prefix, width + 2)
        at += ends.size
        scales = row[at : at + tokens - prefix]
        at += scales.size
        codes = row[at : at + sum(own) // 8 * len(scales)].reshape(-1, len(scales))
        at += codes.size
        planes = np.concatenate([(codes >> bit) & 1 for bit in range(8)])
        values, next_row = np.zeros((count, len(scales))), 0
        for plane in range(max(own, default=0)):
            for axis in range(count):
                if own[axis] > plane:
                    values[axis] += planes[next_row] * 2.0**plane
                    next_row += 1
        gains = 2.0 ** ((scales.astype(np.float64) - 128) / 8)
        axes = constants["axes"][first_axis : first_axis + count].astype(np.float64)
        first_axis += count
        steps = (values - (2.0 ** np.array(own)[:, None] - 1) / 2) * constants["steps"][layer, :count, None]
        state = (steps * gains).T @ axes
        spread = constants["spread"][layer].astype(np.float64)
        if before is not None:
            state = state + before @ constants["predictor"][layer - 1].astype(np.float64)
        before = state
        scale = ends[:, width:].copy().view(ml_dtypes.bfloat16).astype(np.float64)
        top = ends[:, :width].view(np.int8) * scale * constants["channel"][layer]
        found.append(np.concatenate([top, state * spread + mean[layer]]))
    assert at == len(row)
    return found


@pytest.mark.parametrize("name", ["predict:2", "predict:0.7", "predict:20%", "predict:0.01"])
def test_bytes_are_as_the_protocol_says(name):
    blocks = stream()
    encoding = fitted(name, blocks)
    stored = EncodedBatch.of(encoding, blocks).stored
    constants = {key: value.numpy() for key, value in encoding.constants().items()}
    values = decoded(encoding, blocks)
    for sample in (0, 7):
        for layer, own in enumerate(by_hand(stored[sample, 0, 0].numpy(), constants)):
            apart = values[layer][sample].double().numpy() - own
            assert np.linalg.norm(apart) < 0.02 * np.linalg.norm(own)  # products in bfloat16


@pytest.mark.parametrize("bits", [0.5, 1, 2, 4])
def test_so_many_bits_are_spent_and_more_bits_err_less(bits):
    encoding = fitted(f"predict:{bits}")
    said = encoding.describe()
    planes, tokens, columns = encoding.stored_shape(LAYERS, TOKENS, WIDTH)
    assert (planes, tokens) == (1, 1)
    assert 8 * columns / (LAYERS * TOKENS * WIDTH) == pytest.approx(said["bits"], abs=1e-3)
    lost = 8 * (1 + LAYERS) * TOKENS / (LAYERS * TOKENS * WIDTH)  # a byte of codes is not divided
    cheapest = (8 * LAYERS * (PREFIX * (WIDTH + 2) + TOKENS - PREFIX)) / (LAYERS * TOKENS * WIDTH)
    assert max(bits, cheapest) + 1e-3 >= said["bits"] >= bits - lost
    finer = fitted(f"predict:{2 * bits}").describe()
    assert sum(finer["error"]) < sum(said["error"])


@pytest.mark.parametrize("error", [10, 30])
def test_the_error_asked_for_is_reached_on_samples_never_seen(error):
    encoding = fitted(f"predict:{error}%", stream(samples=400))
    fresh = stream(seed=1, samples=50)
    found = [relative_error(own, block) for own, block in zip(decoded(encoding, fresh), fresh, strict=True)]
    said = encoding.describe()
    standard = [
        relative_error((own - block.mean((0, 1))) / block.std((0, 1)), (block - block.mean((0, 1))) / block.std((0, 1)))
        for own, block in zip(decoded(encoding, fresh), fresh, strict=True)
    ]
    assert standard[:-1] == pytest.approx([error / 100] * (LAYERS - 1), rel=0.15)
    assert standard[-1] == pytest.approx(error / 1600, rel=0.5)
    assert found == pytest.approx(said["error"], rel=0.2)


def test_prediction_costs_less_than_storing_layers_alone():
    together = fitted("predict:20%", stream(samples=400)).describe()["bits_by_layer"]
    blocks = stream(samples=400)
    alone = fitted("predict:20%", [blocks[1], blocks[-1]]).describe()["bits_by_layer"]
    assert together[1] < 0.6 * alone[0]


def test_errors_do_not_pile_up():
    blocks = stream(samples=200, layers=12)
    errors = fitted("predict:20%", blocks).describe()["error"]
    assert max(errors[:-1]) < 0.24


def test_a_decoded_chain_is_what_the_encoder_predicted_from():
    blocks = stream()
    encoding = fitted("predict:1", blocks)
    before, kept = None, []
    for layer, block in enumerate(blocks):
        value, before = encoding.round(layer, block, before)
        kept.append(value)
    for ours, theirs in zip(decoded(encoding, blocks), kept, strict=True):
        assert relative_error(ours, theirs) < 5e-3


@pytest.mark.parametrize("positions", [[3], [1, 3], [2, 0], [0, 1, 2, 3]])
def test_some_layers_of_a_chain(positions):
    blocks = stream()
    encoding = fitted("predict:1", blocks)
    planes = list(EncodedBatch.of(encoding, blocks).stored.unbind(1))
    whole = encoding.decode(planes)
    for ours, at in zip(encoding.select(positions).decode(planes), positions, strict=True):
        assert torch.equal(ours, whole[at])
    precision = encoding.precision
    assert precision.stored_layers(positions) == [0]
    assert precision.needed(positions) == list(range(max(positions) + 1))


@pytest.mark.parametrize("prefix", [0, PREFIX])
def test_factors_multiply_to_what_decoding_gives(prefix, monkeypatch):
    """In float32, where both roads agree to rounding; with bfloat16 products they agree to those."""
    blocks = stream()
    encoding = fitted("predict:2", blocks, prefix=prefix)
    planes = list(EncodedBatch.of(encoding, blocks).stored.unbind(1))
    for products, apart in ((True, 0.02), (False, 1e-5)):
        monkeypatch.setattr(layer_codec, "has_bfloat16", lambda _, products=products: products)
        again = get_precision("predict:2").load(encoding.constants(), tokens=TOKENS, prefix=prefix).select([1, 2, 3])
        columns = again.factors(planes, rank=1)
        assert len(columns) == 3
        for own, block in zip(columns, again.decode(planes), strict=True):
            values = torch.einsum("mbn,md->bnd", own.left.double(), own.right.double()) + own.mean
            rounded = torch.cat([own.prefix.double(), values], 1).bfloat16() if not products else values
            assert relative_error(rounded, block if not products else block[:, prefix:]) < max(apart, 2**-9)


def test_factors_are_given_where_they_are_cheaper_than_values():
    blocks = stream(layers=8)
    encoding = fitted("predict:3", blocks)
    planes = list(EncodedBatch.of(encoding, blocks).stored.unbind(1))
    assert encoding.factors(planes, rank=1) is not None
    assert encoding.factors(planes, rank=WIDTH) is None
    bad = [block.clone() for block in blocks]
    bad[2][1, 5, 3] = torch.nan
    assert encoding.factors(list(EncodedBatch.of(encoding, bad).stored.unbind(1)), rank=1) is None


def test_layers_that_cost_nothing_are_what_is_predicted():
    """The second layer is the first, turned; the third is constant."""
    first = stream()[0]
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[0]
    blocks = [first, first @ turn, torch.ones_like(first), first]
    encoding = fitted("predict:5%", blocks)
    assert [len(codec.bits) > 0 for codec in encoding.codecs] == [True, False, False, True]
    for own, block in zip(decoded(encoding, blocks), blocks, strict=True):
        assert relative_error(own, block) < 0.08
    bad = [block.clone() for block in blocks]
    bad[1][3, 4] = torch.nan
    marked = decoded(encoding, bad)[1].isnan().any(-1)
    assert marked.sum() == 1
    assert marked[3, 4]


def planted(seed, samples=200):
    """Outliers like those of large ViTs: channels, tokens, and channels of a few tokens, hundreds of times the rest."""
    rng = np.random.default_rng(seed)
    blocks = stream(seed, samples)
    for block in blocks:
        block[..., [5, 30]] *= 300
        block[torch.from_numpy(rng.random(block.shape[:2]) < 0.02)] *= 200
        massive = torch.from_numpy(rng.random(block.shape[:2]) < 0.05)
        block[..., 11] = torch.where(massive, 3000 + 20 * block[..., 12], block[..., 11])
    return blocks


def test_outliers_are_kept_and_do_not_cost_the_others_their_precision():
    """Errors are relative to what is usual of a channel: a small channel's count like a large one's."""
    encoding = fitted("predict:10%", planted(0))
    fresh = planted(1, 60)
    plain = [channel for channel in range(WIDTH) if channel not in (5, 11, 30)]
    for own, block in zip(decoded(encoding, fresh), fresh, strict=True):
        usual = (block - block.flatten(0, 1).median(0).values).abs().flatten(0, 1).median(0).values
        ours, theirs = own.float() / usual, block / usual
        size, massive = block[..., plain].norm(dim=-1), block[..., 11].abs() > 1000
        large = size > 10 * size.median()
        ordinary = ~large & ~massive
        assert 0.01 < large.float().mean() < 0.03
        assert 0.03 < massive.float().mean() < 0.08
        for tokens in (ordinary, large, massive & ~large):
            assert relative_error(ours[tokens], theirs[tokens]) < 0.13
        for channels in (plain, [5], [30]):
            assert relative_error(ours[ordinary][:, channels], theirs[ordinary][:, channels]) < 0.13


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_decodes_as_nan_and_spares_the_rest(value):
    blocks = stream()
    encoding = fitted("predict:2", blocks)
    bad = [block.clone() for block in blocks]
    bad[1][3, 5, 7] = value
    bad[2][4, 0, 1] = value  # a prefix token
    batch = EncodedBatch.of(encoding, bad)
    overflowed, non_finite = encoding.saturate(batch.stored, batch.extremes)
    assert not overflowed.any()
    assert {at: count for at, count in enumerate(non_finite.tolist()) if count} == {3: WIDTH, 4: WIDTH}
    good, values = decoded(encoding, blocks), encoding.decode(list(batch.stored.unbind(1)))
    assert values[1][3, 5].isnan().all()
    assert values[2][4, 0].isnan().all()
    assert sum(int(own.isnan().sum()) for own in values) == 2 * WIDTH
    others = [at for at in range(40) if at != 3]
    assert all(torch.equal(own[others, 1:], theirs[others, 1:]) for own, theirs in zip(values, good, strict=True))


def test_what_is_missing_decodes_as_nan():
    encoding = fitted("predict:1")
    filled = torch.full((2, *encoding.stored_shape(LAYERS, TOKENS, WIDTH)[1:]), encoding.precision.fill).byte()
    assert all(block.isnan().all() for block in encoding.decode([filled]))


@pytest.mark.parametrize("samples", [1, 2, 9])
@pytest.mark.parametrize("name", ["predict:1", "predict:10%"])
def test_the_smallest_samples_can_be_fitted(samples, name):
    blocks = stream(samples=samples)
    encoding = fitted(name, blocks)
    assert all(block.isfinite().all() for block in decoded(encoding, blocks))


def test_constant_layers_can_be_fitted():
    blocks = [torch.full((5, TOKENS, WIDTH), 3.0) for _ in range(3)]
    for own in decoded(fitted("predict:1", blocks), blocks):
        assert relative_error(own, blocks[0]) < 0.01


def test_constants_rebuild_the_encoding_and_wrong_ones_are_refused():
    encoding = fitted("predict:1")
    constants = encoding.constants()
    again = get_precision("predict:1").load(constants, tokens=TOKENS, prefix=PREFIX)
    blocks = stream(seed=2)
    assert torch.equal(EncodedBatch.of(encoding, blocks).stored, EncodedBatch.of(again, blocks).stored)
    wrong = {
        "bits": (constants["bits"].flip(1), "one a number of bits"),
        "axes": (constants["axes"][1:], "one a number of bits"),
        "predictor": (constants["predictor"][1:], "a matrix a layer"),
        "steps": (-constants["steps"], "steps are not finite and positive"),
    }
    for name, (value, says) in wrong.items():
        with pytest.raises(ValueError, match=says):
            get_precision("predict:1").load(constants | {name: value}, tokens=TOKENS, prefix=PREFIX)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("predict", "must say how many bits a value has, as in predict:1.5"),
        ("predict:-1", "must say how many bits"),
        ("predict:9", "between 0 and 8"),
        ("predict:0", "between 0 and 8"),
        ("predict:100%", "between 0 and 100 %"),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(name, says):
    with pytest.raises(UserError, match=says):
        get_precision(name)
