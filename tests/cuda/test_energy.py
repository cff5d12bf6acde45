"""NVML's own counter of a GPU's energy."""

from time import perf_counter

import pytest
import torch

from losa_cache.machine.energy import EnergyMeter

pytestmark = pytest.mark.cuda


def test_a_gpu_that_computes_takes_energy():
    meter = EnergyMeter(torch.device("cuda"))
    if "gpu_joules" not in meter.take():
        pytest.skip("this GPU, or a part of one, has no such counter")
    started, matrix = perf_counter(), torch.randn(2048, 2048, device="cuda")
    while perf_counter() - started < 0.5:
        torch.cuda.synchronize((matrix @ matrix).device)
    seconds = perf_counter() - started
    assert 5 * seconds < meter.take()["gpu_joules"] < 2000 * seconds  # watts of a GPU
