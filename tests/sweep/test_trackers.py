"""Trials in MLflow and Weights & Biases, as those themselves read them back."""

import json
from dataclasses import replace

import pytest

from losa_cache.errors import UserError
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.sweep.report.trackers import open_trackers
from tests.conftest import results
from tests.sweep.test_sweep import BASE, run


@pytest.mark.slow
def test_mlflow_has_every_trial_and_its_end(tiny_cache, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = SweepConfig(
        cache=str(tiny_cache.path),
        space={"rank": Choices((2, 4)), "lr": Choices((0.01, 1e30))},
        base=replace(BASE, epochs=2),
        trackers=["mlflow"],
    )
    trials = run(tmp_path / "sweep", config)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("losa-cache/sweep")
    found = {int(own.data.tags["losa_cache.trial"]): own for own in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == [trial.number for trial in trials]
    for trial in trials:
        own = found[trial.number]
        assert own.data.params["rank"] == str(trial.params["rank"])
        assert own.info.status == ("FINISHED" if trial.state.name == "COMPLETE" else "FAILED")
        if trial.state.name == "COMPLETE":
            logged = [point.value for point in client.get_metric_history(own.info.run_id, "val_loss")]
            assert logged == [line["val_loss"] for line in results(trial_path(tmp_path / "sweep", trial.number))]


@pytest.mark.slow  # CI has a limit of time
def test_wandb_has_every_trial(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = SweepConfig(
        cache=str(tiny_cache.path),
        space={"rank": Choices((2, 4))},
        base=replace(BASE, epochs=2),
        trackers=["wandb"],
    )
    run(tmp_path / "sweep", config)
    stored = sorted((tmp_path / "sweep" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.stem for path in stored] == ["run-sweep-0000", "run-sweep-0001"]
    for number, path in enumerate(stored):
        last = results(trial_path(tmp_path / "sweep", number))[-1]
        assert json.dumps(last["val_top1"]).encode() in path.read_bytes()


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UserError, match="unknown tracker 'comet': choose one of wandb, mlflow"):
        SweepConfig("cache", {"rank": Choices((2,))}, trackers=["comet"])


@pytest.mark.slow
def test_a_tracker_that_does_not_answer_is_a_sentence_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9/x")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="tracker mlflow failed .*--resume goes on once it works") as failed:
        open_trackers(["mlflow"], tmp_path)
    assert "s3cret" not in str(failed.value)
    assert failed.value.__cause__ is None
