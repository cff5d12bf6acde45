"""A sweep whose cohorts train on a cluster against the same sweep in one process."""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from losa_cache.cluster import connect
from losa_cache.errors import UserError
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.on_cluster import Cluster, OnCluster
from losa_cache.sweep.engine.run import resume_sweep, sweep
from losa_cache.sweep.engine.space import Choices, Range
from losa_cache.sweep.engine.sweep import Sweep, create_sweep
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from tests.conftest import results

BASE = TrainConfig(epochs=8, batch_size=8, val_fraction=0.3, head="last")
SPACES = {
    "grid": {"space": {"lr": Choices((0.01, 1e30)), "seed": Choices((0, 1))}},
    "pruned": {
        "space": {"lr": Range(1e-4, 1.0), "rank": Range(1, 8)},
        "sampler": "tpe",
        "pruner": "halving",
        "trials": 9,
        "concurrent": 3,
    },
}


def begun(folder, kind, cache):
    """Make a sweep's folder."""
    create_sweep(folder, SweepConfig(cache=str(cache.path), base=BASE, together=2, **SPACES[kind]))
    return folder


def train(folder, scheduler=None, report=lambda standing: None):
    """Train a sweep's trials, without the report."""
    cluster = None if scheduler is None else Cluster(scheduler)
    running = Sweep(folder, placement=Placement(torch.device("cpu")), report=report, cluster=cluster)
    running.run()
    return running


def same(one, other):
    """Hold two sweeps to the same trials, in every bit that is no time."""
    first, second = ([{**asdict(t), "files": None} for t in own.progress.trials] for own in (one, other))
    assert first == second
    assert one.to_beat == other.to_beat
    for number, trial in enumerate(first):
        ours, theirs = (trial_path(own.folder, number) for own in (one, other))
        assert results(ours) == results(theirs)
        if trial["state"] == "complete":
            mine, their = (load_file(own / "adapter/adapter.safetensors") for own in (ours, theirs))
            assert mine.keys() == their.keys()
            assert all(mine[name].equal(their[name]) for name in mine)
            assert (ours / "held_out.npy").read_bytes() == (theirs / "held_out.npy").read_bytes()
    assert any(trial["state"] == "complete" for trial in first)
    assert any(trial["state"] != "complete" for trial in first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "pruned"])
def test_a_sweep_on_workers_has_the_bits_of_one_process(kind, tiny_cache, tmp_path, scheduler):
    alone, other = (begun(tmp_path / name, kind, tiny_cache) for name in ("alone", "cluster"))
    same(train(alone), train(other, scheduler))
    assert not [*(other / "cohorts").iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPACES)
def test_a_sweep_that_was_stopped_on_workers_goes_on_here(kind, tiny_cache, tmp_path, scheduler):
    alone, cluster, other = (begun(tmp_path / name, kind, tiny_cache) for name in ("alone", "cluster", "stopped"))
    whole = train(alone)
    same(whole, train(cluster, scheduler))

    def stopped(standing):
        if standing.epochs_done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(other, scheduler, stopped)
    same(whole, train(other))


@pytest.mark.slow
def test_a_sweep_is_stopped_here_and_there_and_its_choice_is_tested_by_a_worker(tiny_cache, tmp_path, scheduler):
    given = {"cache": tiny_cache, "config": BASE, "space": {"lr": [0.01, 0.03], "seed": [0, 1]}, "together": 2}
    given |= {"test_cache": str(tiny_cache.path)}
    whole = sweep(out=tmp_path / "whole", **given)

    def stopped(standing):
        if standing.epochs_done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(out=tmp_path / "stopped", scheduler=scheduler, report=stopped, **given)
    with pytest.raises(KeyboardInterrupt):
        resume_sweep(tmp_path / "stopped", report=stopped)
    found = resume_sweep(tmp_path / "stopped", scheduler=scheduler).record
    assert (found.choice, found.to_beat) == (whole.record.choice, whole.record.to_beat)
    assert found.test["top1"] == whole.record.test["top1"]
    assert found.test["loss"] == whole.record.test["loss"]


def test_each_worker_has_a_share_of_the_trials(tiny_cache, tmp_path, scheduler):
    config = SweepConfig(cache=str(tiny_cache.path), base=replace(BASE, epochs=1), space={"rank": Choices((2, 4))})
    create_sweep(tmp_path / "sweep", config)
    with OnCluster(tmp_path / "sweep", config, Cluster(scheduler)) as trainers:
        assert trainers.together(7) == 3
        assert trainers.most(config.base) % 3 == 0


def test_without_a_scheduler_nothing_is_left(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "SECONDS", 0.5)
    with pytest.raises(UserError, match="no dask scheduler answers at 'tcp://127.0.0.1:9'"):
        sweep(tiny_cache, space={"rank": [2, 4]}, config=BASE, out=tmp_path / "s", scheduler="tcp://127.0.0.1:9")
    assert not (tmp_path / "s").exists()
