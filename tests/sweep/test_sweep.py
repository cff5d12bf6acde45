"""Trials of a sweep against the same trials trained alone by ``losa-cache train``, and a sweep that is killed."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.errors import UserError
from losa_cache.sweep.engine import here as engine
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.space import Choices, Range
from losa_cache.sweep.engine.sweep import Sweep, create_sweep
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from tests.conftest import results
from tests.forked import Forked

CPU = torch.device("cpu")
BASE = TrainConfig(epochs=4, lr=0.01, batch_size=8, val_fraction=0.3)


def run(folder, config, report=lambda standing: None):
    create_sweep(folder, config)
    Sweep(folder, placement=Placement(CPU), report=report).run()
    return optuna.load_study(study_name="losa-cache", storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def test_every_trial_ends_where_it_ends_alone(tiny_cache, tmp_path):
    space = {
        "rank": Choices((2, 6)),
        "lr": Choices((0.01, 0.03)),
        "layers": Choices(("2", "all")),
        "label_smoothing": Choices((0.0, 0.2)),
        "seed": Choices((0, 1)),
    }
    config = SweepConfig(cache=str(tiny_cache.path), space=space, base=replace(BASE, epochs=2, clip_grad=0.1))
    trials = run(tmp_path / "sweep", config)
    assert len(trials) == 2**5
    for trial in trials[::5]:  # each value of every option at least twice
        alone = lc.train(tiny_cache, config=replace(config.base, **trial.params), out=tmp_path / f"{trial.number}")
        theirs = trial_path(tmp_path / "sweep", trial.number)
        ours, other = (load_file(path / "adapter/adapter.safetensors") for path in (alone.run, theirs))
        # as a whole: of gradients that are all but zero AdamW makes steps of full size, to either side
        mine, their = (torch.cat([state[name].flatten() for name in sorted(state)]) for state in (ours, other))
        assert (mine - their).norm() < 5e-3 * mine.norm()
        for mine, their in zip(results(alone.run), results(theirs), strict=True):
            assert mine.keys() == their.keys()
            for name, value in mine.items():
                assert their[name] == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert trial.value == pytest.approx(alone.metrics["val_top1"])
        assert lc.evaluate_run(theirs, cache=tiny_cache.path)["samples"] == 23


def test_stopped_trials_make_place_for_the_next(tiny_cache, tmp_path):
    config = SweepConfig(
        cache=str(tiny_cache.path),
        space={"lr": Range(1e-4, 1.0), "rank": Range(1, 8)},
        base=replace(BASE, epochs=8, lr=None, head="last"),  # no probe that makes all trials alike
        sampler="random",
        pruner="halving",
        trials=9,
        concurrent=3,
    )
    most = []
    trials = run(tmp_path / "sweep", config, most.append)
    states = [trial.state.name for trial in trials]
    assert len(states) == 9
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert most[-1].finished == most[-1].trials == 9
    assert most[-1].epochs_left == 0
    for trial in trials:
        path = trial_path(tmp_path / "sweep", trial.number)
        lines = results(path)
        assert len(lines) == (8 if trial.state.name == "COMPLETE" else trial.last_step)
        assert (path / "adapter/adapter.safetensors").exists() == (trial.state.name == "COMPLETE")
        assert [line["val_top1"] for line in lines] == list(trial.intermediate_values.values())


def test_a_trial_whose_loss_is_no_number_fails_alone(tiny_cache, tmp_path):
    space = {"lr": Choices((0.01, 1e30))}
    first, second = run(tmp_path / "sweep", SweepConfig(cache=str(tiny_cache.path), space=space, base=BASE))
    assert (first.state.name, second.state.name) == ("COMPLETE", "FAIL")
    alone = lc.train(tiny_cache, config=BASE, out=tmp_path / "alone")
    assert first.value == pytest.approx(alone.metrics["val_top1"])


@pytest.mark.slow
def test_a_trial_whose_last_step_goes_too_far_fails_alone(tiny_cache, tmp_path):
    base, space = replace(BASE, epochs=1, batch_size=64, head="last"), {"lr": Choices((0.01, 1e38))}
    config = SweepConfig(cache=str(tiny_cache.path), space=space, base=base)
    first, second = run(tmp_path / "sweep", config)
    assert (first.state.name, second.state.name) == ("COMPLETE", "FAIL")
    assert not (trial_path(tmp_path / "sweep", 1) / "adapter").exists()


KILLED = """
import sys, torch
from pathlib import Path
from losa_cache.train.placement import Placement
from losa_cache.sweep.engine.sweep import Sweep
Sweep(Path(sys.argv[1]), placement=Placement(torch.device("cpu")), report=lambda standing: None).run()
"""


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_ends_as_if_it_had_not_been(tiny_cache, tmp_path):
    config = SweepConfig(
        cache=str(tiny_cache.path),
        space={"rank": Choices((2, 4)), "lr": Choices((0.01, 0.03)), "seed": Choices((0, 1))},
        base=replace(BASE, epochs=6),
        concurrent=3,
    )
    whole = run(tmp_path / "whole", config)
    create_sweep(tmp_path / "killed", config)
    kills = 0
    while True:
        process = Forked("-c", KILLED, tmp_path / "killed")
        before = progress(tmp_path / "killed")
        while kills < 3 and process.poll() is None and progress(tmp_path / "killed") < before + 3 + 7 * kills:
            time.sleep(0.01)
        if kills < 3 and process.poll() is None:
            time.sleep(0.003 * kills)
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait().returncode == 0:
            break
    assert kills > 1
    killed = optuna.load_study(study_name="losa-cache", storage=f"sqlite:///{tmp_path / 'killed' / 'study.db'}")
    ended = {json.dumps(t.params, sort_keys=True): t for t in killed.get_trials() if t.state.name == "COMPLETE"}
    assert len(ended) == len(whole) == 8
    for trial in whole:
        other = ended[json.dumps(trial.params, sort_keys=True)]
        assert other.value == trial.value
        ours, theirs = (
            trial_path(tmp_path / name, n) for name, n in (("whole", trial.number), ("killed", other.number))
        )
        assert len(results(theirs)) == 6
        for mine, their in zip(results(ours), results(theirs), strict=True):
            assert their == pytest.approx(mine, rel=1e-5)
    assert not list((tmp_path / "killed" / "cohorts").iterdir())


def progress(folder):
    return sum(len(path.read_text().splitlines()) for path in folder.glob("trials/*/metrics.jsonl"))


def test_a_sweep_is_not_made_in_place_of_a_folder_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SweepConfig(cache="x.zarr", space={"rank": Choices((2,))}, base=BASE)
    for folder in (".", "", "/", str(tmp_path)):
        with pytest.raises(UserError, match="exists: continue it with --resume"):
            create_sweep(Path(folder), config)


def test_two_processes_do_not_run_one_sweep(tiny_cache, tmp_path):
    config = SweepConfig(cache=str(tiny_cache.path), space={"rank": Choices((2,))}, base=BASE)
    create_sweep(tmp_path / "sweep", config)
    first, second = (Sweep(tmp_path / "sweep", placement=Placement(CPU), report=lambda _: None) for _ in range(2))
    with first._owned(), pytest.raises(UserError, match="another process runs the sweep"):
        second.run()


def test_what_the_study_was_told_before_a_kill_stays_told(tiny_cache, tmp_path, monkeypatch):
    """Between the end of a trial and its cohort's checkpoint."""
    config = SweepConfig(cache=str(tiny_cache.path), space={"lr": Choices((0.01, 1e30))}, base=BASE)
    saved = engine.save_state
    states = []

    def killed(path, state):
        states.append(state["epoch"])
        if state["epoch"] == 1:
            raise MemoryError
        saved(path, state)

    monkeypatch.setattr(engine, "save_state", killed)
    with pytest.raises(MemoryError):
        run(tmp_path / "sweep", config)
    assert states == [0, 1]
    monkeypatch.setattr(engine, "save_state", saved)
    Sweep(tmp_path / "sweep", placement=Placement(CPU), report=lambda _: None).run()
    trials = optuna.load_study(study_name="losa-cache", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert [trial.state.name for trial in trials.get_trials()] == ["COMPLETE", "FAIL"]
    assert [len(results(trial_path(tmp_path / "sweep", number))) for number in (0, 1)] == [4, 1]
