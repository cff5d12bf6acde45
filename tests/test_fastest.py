"""Which way is the fastest is measured once; the clock and the GPU's name are made up here."""

import json

import pytest
import torch

from losa_cache import fastest
from losa_cache.folders import home

GPU = torch.device("cuda")


@pytest.fixture
def measured(monkeypatch):
    """Have each way take as many milliseconds as it returns, and give those that were measured."""
    seen = []

    def milliseconds(work, device):
        seen.append(work())
        return seen[-1]

    monkeypatch.setattr(fastest, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    return seen


def fails():
    raise RuntimeError("a compiler that fails")


def test_it_is_measured_once_a_work_and_a_gpu_then_remembered(measured, monkeypatch):
    ways = {"slow": lambda: 3, "fast": lambda: 1}
    assert fastest.fastest("work of 12 layers", ways, GPU) == "fast"
    assert fastest.fastest("work of 12 layers", ways, GPU) == "fast"
    assert measured == [3, 1]
    fastest.fastest("work of 24 layers", ways, GPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another GPU")
    fastest.fastest("work of 12 layers", ways, GPU)
    assert measured == [3, 1] * 3
    assert len(json.loads((home() / "fastest.json").read_text())) == 3


def test_a_way_that_fails_is_not_chosen(measured):
    assert fastest.fastest("work", {"broken": fails, "slow": lambda: 3}, GPU) == "slow"
    with pytest.raises(RuntimeError, match=r"none of broken works for other work \(a compiler that fails\)"):
        fastest.fastest("other work", {"broken": fails}, GPU)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"work": [1]}', b"\xff\xfe"])
def test_damaged_notes_are_measured_again(content, measured):
    home().mkdir(parents=True)
    (home() / "fastest.json").write_bytes(content)
    assert fastest.fastest("work", {"slow": lambda: 3, "fast": lambda: 1}, GPU) == "fast"
    assert list(json.loads((home() / "fastest.json").read_text()).values()) == ["fast"]


def test_a_folder_that_cannot_be_written_costs_another_measurement(measured):
    home().parent.mkdir(parents=True, exist_ok=True)
    home().write_text("a file where the folder should be")
    for _ in range(2):
        assert fastest.fastest("work", {"slow": lambda: 3, "fast": lambda: 1}, GPU) == "fast"
    assert measured == [3, 1] * 2


def test_kernels_are_for_cuda_devices():
    assert fastest.why_not_triton(torch.device("cpu")) == "they need a CUDA device"
