"""Names of devices are known before torch is imported, and are torch's own."""

import pytest
import torch

from losa_cache.errors import UserError
from losa_cache.machine.device_names import KINDS, require_device_name


@pytest.mark.parametrize("kind", KINDS)
def test_torch_knows_every_kind(kind):
    require_device_name(kind)
    require_device_name(f"{kind}:1")
    assert torch.device(kind).type == kind


@pytest.mark.parametrize("name", ["abacus", "", "cuda:", "cuda:x", "cpu:-1", "cuda:0:1", ":0"])
def test_other_names_are_one_sentence(name):
    with pytest.raises(UserError, match=f"device {name!r} cannot be used: choose cpu, cuda or"):
        require_device_name(name)
    with pytest.raises(RuntimeError):
        torch.device(name)
