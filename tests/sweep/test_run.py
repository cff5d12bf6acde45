"""From a cache to a choice, its one test and a report; and the same from the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest

import losa_cache as lc
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.sweep.engine.record import SweepRecord, TrialRecord
from losa_cache.sweep.engine.results import choose
from losa_cache.sweep.engine.run import resume_sweep, summary, sweep
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.tasks.classification import TOP1
from losa_cache.train.config import TrainConfig
from tests.conftest import losa_cache, tiny_backbone, tiny_samples

BASE = TrainConfig(epochs=2, batch_size=8, val_fraction=0.3)
SPACE = {"rank": [2, 4], "lr": "1e-3,1e-2", "seed": [0, 1]}


@pytest.fixture
def test_cache(tmp_path, tiny_cache):
    return extract(tiny_backbone(), tiny_samples(11, split="test"), precision="float32", out=tmp_path / "test.zarr")


def trial(number, value, *, parameters=10, **options):
    curve = [{"epoch": 1, "train_loss": 1.0, "val_top1": value}]
    return TrialRecord(number, "complete", options, parameters, curve, "losa-cache train")


def test_the_best_mean_over_seeds_wins_and_its_lowest_seed_not_the_luckiest():
    trials = [
        trial(0, 99.0, lr=1, seed=0),
        trial(1, 60.0, lr=1, seed=1),
        trial(2, 82.0, lr=2, seed=1),
        trial(3, 80.0, lr=2, seed=0),
    ]
    assert choose(trials, TOP1).chosen == 3
    assert choose([trial(0, 80.0, lr=1, parameters=20), trial(1, 80.0, lr=2, parameters=10)], TOP1).chosen == 1
    assert choose([replace(own, state="pruned") for own in trials], TOP1) is None


def test_the_chosen_trial_alone_is_tested_once(tiny_cache, test_cache, tmp_path):
    found = sweep(tiny_cache, space=SPACE, config=BASE, out=tmp_path / "sweep", device="cpu")
    record = found.record
    assert len(record.trials) == 8
    best = record.chosen_trial
    assert best.options["seed"] == 0
    tested = [path.parent.name for path in (tmp_path / "sweep").rglob("eval.json")]
    assert tested == [f"{best.number:04d}"]
    alone = lc.evaluate_run(trial_path(tmp_path / "sweep", best.number), cache=test_cache.path, device="cpu")
    assert {name: record.test[name] for name in alone} == alone
    assert (record.training_samples, record.validation_samples) == (16, 7)
    assert (record.choice["chosen"], record.choice["paired"], record.choice["images"]) == (best.number, True, 7)
    (folder,) = {path.parent for path in (tmp_path / "sweep").rglob("eval.json")}
    hits, losses = np.load(folder / "held_out.npy")
    assert 100 * hits.mean() == pytest.approx(best.value)
    assert 0 < losses.mean() <= best.loss + 1e-6  # at the best temperature
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "7 samples of the training cache, held out by a hash of their ids (--val-fraction 0.3)" in page
    stored = SweepRecord.from_json(json.loads((tmp_path / "sweep" / "record.json").read_text()))
    assert stored == record
    test_cache.shard_path(0).unlink()  # a finished sweep is read, not tested again
    assert resume_sweep(tmp_path / "sweep", device="cpu").record == record
    assert summary(found)["chosen"] == best.number
    last, whole = stored.to_beat.lines
    assert "fitted to the trials' 16 training samples and judged by the same 7" in record.to_beat.told
    assert f"Probe, last layer: top-1 {last.held_out_top1:.1f} % held out" in page
    assert summary(found)["probe_all_layers_val_top1"] == whole.held_out_top1


@pytest.mark.slow
def test_retraining_uses_validation_samples_too(tiny_cache, test_cache, tmp_path):
    options = {"config": BASE, "device": "cpu", "retrain": True, "test_cache": str(test_cache.path)}
    record = sweep(tiny_cache, space={"rank": [2, 4]}, out=tmp_path / "sweep", **options).record
    assert record.test["retrained"]
    chosen = record.chosen_trial.options
    whole = lc.train(tiny_cache, config=replace(BASE, **chosen, val_fraction=0), out=tmp_path / "whole", device="cpu")
    expected = lc.evaluate_run(whole.run, cache=test_cache.path, device="cpu")
    assert {name: record.test[name] for name in expected} == expected


@pytest.mark.slow
def test_a_validation_cache_judges_all_of_its_samples(tiny_cache, test_cache, tmp_path):
    held = extract(tiny_backbone(), tiny_samples(9, split="val"), precision="float32", out=tmp_path / "val.zarr")
    record = sweep(
        tiny_cache, space={"rank": [2, 4]}, config=BASE, out=tmp_path / "s", device="cpu", val_cache=str(held.path)
    ).record
    assert (record.training_samples, record.validation_samples) == (23, 9)
    assert record.test["on"] == str(test_cache.path)
    assert "fitted to the trials' 23 training samples and judged by the same 9" in record.to_beat.told
    for own in record.trials:
        found = lc.evaluate_run(trial_path(tmp_path / "s", own.number), cache=held.path, device="cpu")
        assert own.value == pytest.approx(found["top1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"space": {}}, "there is nothing to sweep"),
        ({"space": {"rank": [99]}}, "rank is 99: choose one from 1 to the backbone's width"),
        ({"space": {"rank": "2..4"}}, "rank is the range 2..4, which a grid cannot list"),
        ({"space": SPACE, "sampler": "tpe", "trials": 3}, "would choose a seed that is best by chance"),
        ({"space": {"lr": "1e-3..1e-2"}, "sampler": "random"}, "needs the number of trials: give it with --trials"),
        ({"space": {"rank": [2, 4]}, "sampler": "bayes"}, "unknown sampler 'bayes'"),
        ({"space": {"rank": [2, 4]}, "pruner": "asha"}, "unknown pruner 'asha'"),
        ({"space": {"rank": [2, 4]}, "concurrent": 0}, "concurrent is 0"),
        (
            {"space": {"side": ["ladder", "losa"]}},
            "side is 'ladder', but only trials of losa, mlp, fusion and attentive train together",
        ),
        (
            {"space": {"rank": [2, 4]}, "config": replace(BASE, val_fraction=0)},
            "nothing is held out to choose a trial by",
        ),
        (
            {"space": {"rank": [2, 4]}, "config": replace(BASE, val_fraction=0.1)},
            "2 images held out cannot tell settings apart: a choice takes at least 5, and about 500",
        ),
        (
            {"space": {"rank": [2, 4]}, "config": replace(BASE, val_ids="of_one_class.txt")},
            "all 8 held-out images are of class 'a'",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(options, said, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_one_class.txt").write_text("\n".join(f"image-{n:03d}" for n in range(0, 23, 3)))
    with pytest.raises(UserError, match=said):
        sweep(tiny_cache, **{"config": BASE, "out": tmp_path / "s", "device": "cpu"} | options)


@pytest.mark.slow  # CI has a limit of time
def test_the_command_line_sweeps_and_prints_the_winners_command(digits, tmp_path):
    arguments = ["--cache", str(digits["train"]), "--test-cache", str(digits["test"]), "--device", "cpu"]
    arguments += ["--rank", "2,4", "--lr", "3e-3", "--layers", "4", "--epochs", "2", "--val-fraction", "0.2"]
    done = losa_cache("sweep", *arguments, "--out", "s", "--json", cwd=tmp_path, home=digits["home"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["trials"] == 2
    assert "2/2 trials" in done.stderr
    alone = losa_cache(*result["command"].split()[1:], "--device", "cpu", "--json", cwd=tmp_path, home=digits["home"])
    assert json.loads(alone.stdout)["val_top1"] == pytest.approx(result["val_top1"], abs=1.5)
    failed = losa_cache("sweep", *arguments, "--out", "s", cwd=tmp_path, home=digits["home"])
    assert (failed.returncode, failed.stderr) == (
        2,
        "error: 's' exists: continue it with --resume, or choose another --out.\n",
    )
