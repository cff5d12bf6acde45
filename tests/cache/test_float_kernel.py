"""Rounding by a Triton kernel is torch's, bit for bit, and so is the largest magnitude."""

import pytest
import torch

from losa_cache.cache.precision import get_precision

interpreted = pytest.importorskip("tests.interpreted")


@pytest.mark.parametrize("special", [None, 70_000.0, 3.4e38, float("inf"), float("nan")])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_the_kernel_rounds_as_torch_does(name, source, special, monkeypatch):
    interpreted.interpret(monkeypatch)
    from losa_cache.cache.precision.kernels import floats

    precision = get_precision(name)
    values = (torch.randn(3, 5, 1000, generator=torch.Generator().manual_seed(0)) * 3).to(source)
    if special is not None:
        values[1, 2, 3] = special
    stored = torch.zeros(2, 3, 2, 5, 1000, dtype=precision.dtype)  # torch's and the kernel's, layers beside each other
    wanted, found = (own[:, 1] for own in stored)
    extreme = precision.fit([], tokens=5, prefix=1).encode_layer(0, values, wanted)
    assert floats.readable(values, found)
    assert torch.equal(floats.encode(values, found).nan_to_num(-1), extreme.float().nan_to_num(-1))
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(0), wanted.nan_to_num(0))
    assert not stored[:, :, 0].any()


def test_values_that_do_not_lie_one_behind_the_other_are_left_to_torch(monkeypatch):
    interpreted.interpret(monkeypatch)
    from losa_cache.cache.precision.kernels import floats

    values, out = torch.zeros(2, 5, 8), torch.zeros(2, 5, 4)
    assert not floats.readable(values[..., :4], out)
    assert floats.readable(values[:, 1:], values[:, :4])
