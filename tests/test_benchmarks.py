"""The benchmark for GPUs, in tiny sizes: every part runs and tells what it is for. And attacks, a few of each kind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
WANTED = {
    "card": {"card", "torch", "copy_gb_s", "read_gb_s", "matmul_tflops"},
    "tests": {"summary", "failed"},
    "step": {"shape", "rank", "batch", "ms", "limit_ms", "over_limit"},
    "stacks": {"trials", "ms", "over_one"},
    "extraction": {"backbone", "precision", "images_per_second"},
    "residency": {"where", "images_per_second", "load_gb_per_second"},
    "lora": {"method", "images_per_second"},
    "video": {"method", "clips_per_second"},
    "budget": {"budget", "images_per_second", "weights_gb"},
}
"""What at least one line of each part says."""
PLACES = {"made", "device", "memory", "disk", "partial", "cold disk", "online"}


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_in_tiny_sizes(tmp_path):
    file = tmp_path / "lines.jsonl"
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "3", "--out", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the work is too small to share
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert file.read_text() == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [
        line for line in lines if {"error", "cut", "out_of_memory"} & line.keys() and line.get("cut") is not False
    ]
    found = {part: [line for line in lines if line["part"] == part] for part in WANTED}
    for part, keys in WANTED.items():
        assert any(keys <= line.keys() for line in found[part]), part
    assert {line["where"] for line in found["residency"] if "where" in line} == PLACES
    (step,) = (line for line in found["step"] if "ms" in line)
    assert step["ms"].keys() | step["left_out"].keys() >= {"eager", "kernels", "graph", "graph + kernels", "plain"}


def watched(code: str, parts: list[str], grace: float) -> tuple[list[str], list[dict]]:
    """What is left when a process that runs this code has been watched, and what came of it."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    lines: list[dict] = []
    left = gpu.measure([sys.executable, "-c", code], parts, lines.append, grace=grace)
    return left, lines


BEGINS = """print('a library says something')
print('{"part": "card", "allotted_s": 0}', '{"part": "card", "figure": 1}', sep="\\n", flush=True)
print('{"part": "step", "allotted_s": 0}', flush=True)
import os, sys, time
"""


@pytest.mark.parametrize(
    ("ending", "grace", "reason"),
    [
        ("print('no driver', file=sys.stderr); sys.exit(3)", 60, "ended with 3"),
        ("os.kill(os.getpid(), 9)", 60, "ended with -9"),
        ("time.sleep(99)", 1, "took too long"),
    ],
)
def test_a_part_that_hangs_or_dies_costs_itself_alone(ending, grace, reason):
    left, lines = watched(BEGINS + ending, ["card", "step", "stacks"], grace)
    assert left == ["stacks"]
    assert {"part": "card", "figure": 1} in lines
    assert lines[-1]["part"] == "step"
    assert reason in lines[-1]["error"]
    assert ("no driver" in lines[-1]["said"]) == (grace == 60 and "driver" in ending)


def test_nothing_is_left_of_a_process_that_ends_well():
    assert watched(BEGINS, ["card", "step"], 60)[0] == []


@pytest.mark.slow
def test_a_few_attacks_of_each_kind_end_right_or_in_a_sentence(tmp_path):
    file = tmp_path / "attacks.jsonl"
    command = [sys.executable, str(SCRIPT.with_name("attack.py")), "--tiny", "--out", str(file)]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "attacked")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    cases = [json.loads(line) for line in file.read_text().splitlines()]
    assert {case["kind"] for case in cases} == {"kills", "flips", "structure", "inputs"}
    assert len(cases) >= 14
    for case in cases:
        assert case["steps"], case
        assert case["outcome"] in ("right", "one sentence"), case
    assert {case["outcome"] for case in cases} == {"right", "one sentence"}
    assert "| **inputs** |" in done.stdout


SCALE = """
from pathlib import Path
import json, scale
scale.make(Path("c.zarr"), 300, 30)
print(json.dumps({name: part(Path("c.zarr")) for name, part in scale.PARTS.items()}))
"""


@pytest.mark.slow
def test_the_benchmark_of_scale_runs_in_tiny_sizes(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOSA_CACHE_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", SCALE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert all("seconds" in figures for figures in found.values())
    assert found["epochs"]["opens in epoch 1"] >= 30
    assert 300 * 68 <= found["epochs"]["bytes in epoch 2"] < found["epochs"]["bytes in epoch 1"] - 30 * 160


@pytest.mark.slow
def test_the_benchmark_of_listing_runs_in_tiny_sizes(tmp_path):
    options = ["--files", "40", "--classes", "4", "--images", "--repeats", "1", "--folder", str(tmp_path)]
    command = [sys.executable, str(SCRIPT.with_name("listing.py")), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["part"] for line in lines] == ["imports", "listing and fingerprint", "data --look names", "data"]
    assert all(line["peak_mb"] > 1 for line in lines)
    assert not [*tmp_path.iterdir()]
