"""Many adapters on one backbone on a GPU: the numbers of the CPU, and memory that does not grow with the blocks."""

import pytest
import torch

import losa_cache as lc
from tests.apply.test_adapted import KINDS, load, trained  # noqa: F401
from tests.conftest import tiny_backbone

pytestmark = pytest.mark.cuda


def test_the_outputs_are_those_of_the_cpu(trained):  # noqa: F811
    _, pixels, folder = trained
    expected = lc.AdaptedModel(tiny_backbone(), load(folder))(pixels)
    model = lc.AdaptedModel(tiny_backbone().to("cuda"), load(folder))
    found = model(pixels)
    for name in KINDS:
        assert found[name].is_cuda
        assert torch.allclose(found[name].cpu(), expected[name], atol=1e-4, rtol=1e-4), name


def test_a_backbone_that_streams_serves_adapters_too(trained):  # noqa: F811
    _, pixels, folder = trained
    expected = lc.AdaptedModel(tiny_backbone(), load(folder))(pixels)
    budget = 3 * sum(p.nbytes for p in tiny_backbone().model.blocks[0].parameters()) + 2**20
    model = lc.AdaptedModel(tiny_backbone().to("cuda", budget=budget), load(folder))
    found = model(pixels)
    assert all(torch.allclose(found[name].cpu(), expected[name], atol=1e-4, rtol=1e-4) for name in KINDS)
