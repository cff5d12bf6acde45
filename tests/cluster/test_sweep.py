"""A sweep whose cohorts train on a cluster against the same sweep in one process."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from losa_cache.cluster import connect
from losa_cache.errors import UserError
from losa_cache.sweep.engine.progress import load_progress
from losa_cache.sweep.engine.run import resume_sweep, sweep
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.train.config import TrainConfig
from tests.conftest import results

BASE = TrainConfig(epochs=4, batch_size=8, val_fraction=0.3)


def same(one, other):
    """Hold two sweeps to the same trials, in every bit that is no time."""
    first, second = one.record, other.record
    assert [(t.number, t.state, t.options, t.value) for t in first.trials] == [
        (t.number, t.state, t.options, t.value) for t in second.trials
    ]
    assert (first.choice, first.test, first.to_beat) == (second.choice, second.test, second.to_beat)
    for trial in first.trials:
        ours, theirs = (trial_path(own.folder, trial.number) for own in (one, other))
        assert results(ours) == results(theirs)
        if (file := ours / "adapter/adapter.safetensors").exists():
            mine, their = load_file(file), load_file(theirs / "adapter/adapter.safetensors")
            assert mine.keys() == their.keys()
            assert all(mine[name].equal(their[name]) for name in mine)
            assert (ours / "held_out.npy").read_bytes() == (theirs / "held_out.npy").read_bytes()


@pytest.mark.parametrize("kind", ["grid", "pruned"])
def test_a_sweep_on_workers_has_the_bits_of_one_process(kind, tiny_cache, tmp_path, scheduler):
    given = {
        "grid": {"space": {"lr": [0.01, 1e30], "rank": [2, 5], "seed": [0, 1]}},
        "pruned": {
            "space": {"lr": "1e-4..1.0", "rank": "1..8"},
            "sampler": "tpe",
            "pruner": "halving",
            "trials": 7,
            "concurrent": 4,
        },
    }[kind]
    given |= {"cache": tiny_cache, "config": replace(BASE, head="last"), "together": 2}
    alone = sweep(out=tmp_path / "alone", **given)
    same(alone, sweep(out=tmp_path / "cluster", scheduler=scheduler, **given))
    assert not [*(tmp_path / "cluster/cohorts").iterdir()]


def test_a_sweep_goes_on_anywhere_from_where_it_was_stopped(tiny_cache, tmp_path, scheduler):
    given = {"cache": tiny_cache, "config": BASE, "space": {"lr": [0.01, 0.03], "seed": [0, 1]}, "together": 2}
    whole = sweep(out=tmp_path / "whole", **given)

    def stopped(standing):
        if standing.epochs_done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(out=tmp_path / "stopped", scheduler=scheduler, report=stopped, **given)
    with pytest.raises(KeyboardInterrupt):
        resume_sweep(tmp_path / "stopped", report=stopped)
    same(whole, resume_sweep(tmp_path / "stopped", scheduler=scheduler))


def test_each_worker_has_a_share_of_the_trials(tiny_cache, tmp_path, scheduler):
    given = {"cache": tiny_cache, "config": replace(BASE, epochs=1, head="last"), "concurrent": 6}
    space = {"lr": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]}
    found = sweep(out=tmp_path / "sweep", scheduler=scheduler, space=space, **given)
    assert load_progress(found.folder, space).together == 2


def test_without_a_scheduler_nothing_is_left(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "SECONDS", 0.5)
    with pytest.raises(UserError, match="no dask scheduler answers at 'tcp://127.0.0.1:9'"):
        sweep(tiny_cache, space={"rank": [2, 4]}, config=BASE, out=tmp_path / "s", scheduler="tcp://127.0.0.1:9")
    assert not (tmp_path / "s").exists()
