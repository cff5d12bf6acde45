"""A sweep killed at any step ends as one that was not: every trial once, with the same results, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from losa_cache.extract.extract import extract
from tests.conftest import tiny_backbone, tiny_samples
from tests.sweep.kills import FULL

GRID = {"space": {"rank": [2, 4], "lr": [0.01, 0.03]}, "concurrent": 3}
DRAWN = {"space": {"rank": {"low": 1, "high": 6}, "lr": {"low": 1e-4, "high": 1.0}}, "trials": 6, "concurrent": 2}
TRAIN = {"epochs": 2, "batch_size": 8, "val_fraction": 0.3}
MIDST = 40  # steps


def kill(place: Path, config: dict, *, part: str = "run", train: dict | None = None, **how) -> list[dict]:
    """Kill a sweep at each of its steps; what came of it, by step."""
    cache = extract(tiny_backbone(), tiny_samples(), precision="float32", out=place / "train.zarr", shard_bytes=13_000)
    test = extract(tiny_backbone(), tiny_samples(11, split="test"), precision="float32", out=place / "test.zarr")
    own = {"cache": str(cache.path), "test_cache": str(test.path)} | config
    case = {"name": "case", "part": part, "config": own, "train": TRAIN | (train or {}), **how}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), str(place / "kills"), json.dumps([case])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_same(kills: list[dict], *, ended: int = -9) -> None:
    assert {own["codes"][0] for own in kills} == {ended}
    wrong = [own for own in kills if own["found"] != "same"]
    assert not wrong, f"{len(wrong)} of {len(kills)}: {wrong[:5]}"


@pytest.mark.slow
def test_killed_while_trials_are_begun_told_and_shown(tmp_path):
    require_same(kill(tmp_path, GRID, every=29))


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_the_sweep_goes_on(tmp_path):
    require_same(kill(tmp_path, GRID, every=59, only="open|rename|mkdir|commit", full=True), ended=FULL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        GRID,
        GRID | {"space": {"rank": [2, 4], "seed": [0, 1]}, "pruner": "median", "concurrent": None},
        DRAWN | {"sampler": "random", "pruner": "halving"},
        DRAWN | {"sampler": "tpe", "pruner": "hyperband", "trials": 14},
    ],
    ids=["grid", "seeds", "random", "tpe"],
)
def test_killed_at_every_step(tmp_path, config):
    kills = kill(tmp_path, config, train={"epochs": 3} if "pruner" in config else {})
    assert len(kills) == kills[0]["steps"]
    require_same(kills)


@pytest.mark.slow
@pytest.mark.parametrize("later", [1, 20, MIDST])
def test_killed_twice(tmp_path, later):
    require_same(kill(tmp_path, DRAWN | {"sampler": "tpe", "pruner": "halving"}, every=3, again=later))


@pytest.mark.slow
@pytest.mark.parametrize("retrain", [False, True])
def test_killed_after_the_trials(tmp_path, retrain):
    require_same(kill(tmp_path, GRID | {"retrain": retrain}, part="end"))


@pytest.mark.slow
def test_a_full_disk_at_every_step(tmp_path):
    require_same(kill(tmp_path, GRID, full=True), ended=FULL)
