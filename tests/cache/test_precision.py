"""Rounding, overflow and counting."""

import ml_dtypes
import numpy as np
import pytest
import torch

from losa_cache.cache.precision import PRECISIONS, get_precision
from losa_cache.errors import UserError


def encode(name, *blocks):
    precision = get_precision(name)
    encoder = precision.encoder((1, len(blocks), 1, len(blocks[0])), torch.device("cpu"))
    for layer, block in enumerate(blocks):
        encoder.put(layer, torch.tensor(block, dtype=torch.float32).view(1, 1, -1))
    return encoder.values, precision.settle(encoder.values, encoder.extremes)


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


@pytest.mark.parametrize("name", PRECISIONS)
def test_what_the_backbone_gave_as_not_finite_stays_and_is_counted(name):
    values, counts = encode(name, [float("nan"), float("inf"), 1.0])
    assert counts == (0, 2)
    assert values.isnan().sum() == 1
    assert values.isinf().sum() == 1


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_fill_value_reads_as_nan(name):
    precision = get_precision(name)
    filled = torch.from_numpy(np.full(3, precision.fill, dtype=precision.storage)).view(precision.dtype)
    assert filled.isnan().all()


def test_unknown_precisions_are_refused():
    with pytest.raises(UserError, match="float32, float16, bfloat16"):
        get_precision("int3")
