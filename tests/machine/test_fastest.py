"""Which way is the fastest is measured once; the clock and the GPU's name are made up here."""

import json
import os

import pytest
import torch

from losa_cache.folders import home
from losa_cache.machine import fastest

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
    notes = [json.loads(path.read_text()) for path in (home() / "fastest").iterdir()]
    assert sorted(note["fastest"] for note in notes) == ["fast"] * 3


def test_a_way_that_fails_is_not_chosen(measured):
    assert fastest.fastest("work", {"broken": fails, "slow": lambda: 3}, GPU) == "slow"
    with pytest.raises(RuntimeError, match=r"none of broken works for other work \(a compiler that fails\)"):
        fastest.fastest("other work", {"broken": fails}, GPU)


def test_no_memory_chooses_nothing(measured):
    def large():
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        fastest.fastest("work", {"large": large, "slow": lambda: 3}, GPU)
    assert fastest.fastest("work", {"large": lambda: 1, "slow": lambda: 3}, GPU) == "large"


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"fastest": [1]}', b"\xff\xfe", b"[" * 200_000])
def test_damaged_notes_are_measured_again(content, measured):
    ways = {"slow": lambda: 3, "fast": lambda: 1}
    fastest.fastest("work", ways, GPU)
    (note,) = (home() / "fastest").iterdir()
    note.write_bytes(content)
    assert fastest.fastest("work", ways, GPU) == "fast"
    assert measured == [3, 1] * 2
    assert json.loads(note.read_text())["fastest"] == "fast"


def test_what_is_no_file_is_not_opened(measured):
    fastest.fastest("work", {"fast": lambda: 1}, GPU)
    (note,) = (home() / "fastest").iterdir()
    note.unlink()
    os.mkfifo(note)  # to open it would wait for a writer
    assert fastest.fastest("work", {"fast": lambda: 1}, GPU) == "fast"


def test_a_folder_that_cannot_be_written_costs_another_measurement(measured):
    home().mkdir(parents=True)
    (home() / "fastest").write_text("a file where the folder should be")
    for _ in range(2):
        assert fastest.fastest("work", {"slow": lambda: 3, "fast": lambda: 1}, GPU) == "fast"
    assert measured == [3, 1] * 2
    assert [path.name for path in home().iterdir()] == ["fastest"]


def test_kernels_are_for_cuda_devices():
    assert fastest.why_not_triton(torch.device("cpu")) == "they need a CUDA device"
