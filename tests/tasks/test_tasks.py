"""Tasks are found by name; one that is a single file trains, is evaluated, searched and reported like another."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

import losa_cache as lc
from losa_cache import tasks
from losa_cache.sweep.report.findings import findings
from losa_cache.tasks.classification import TASK
from losa_cache.train.config import TrainConfig
from losa_cache.train.online_config import OnlineConfig
from tests.conftest import results, tiny_backbone, tiny_samples

EXTRA = str(Path(__file__).parent / "extra")
OPTIONS = {"task": "number", "side": "mlp", "rank": 2, "epochs": 4, "batch_size": 8, "lr": 3e-2, "device": "cpu"}


@pytest.fixture
def number(monkeypatch):
    """A task more: one file in the package's folder."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, EXTRA])
    for found in (tasks.task_names, tasks.get_task):
        found.cache_clear()
    yield tasks.get_task("number")
    for found in (tasks.task_names, tasks.get_task):
        found.cache_clear()
    sys.modules.pop("losa_cache.tasks.number")


def test_names_are_known_and_tasks_found_without_torch():
    with pytest.raises(
        lc.UserError, match="unknown task 'clasification': choose one of classification, .*; nearest: classification"
    ):
        TrainConfig(task="clasification")
    told = (
        "import sys; from losa_cache.tasks import get_task; assert 'numpy' not in sys.modules; "
        "print(get_task('classification').say({'loss': 0.5, 'top1': 61.26, 'top5': 100.0})); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "top-1 61.3 %, top-5 100.0 %, loss 0.500\n"


def test_answers_are_the_likeliest_classes_with_their_probabilities():
    outputs = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, -1.0]]])
    expected = outputs[0].double().softmax(1).numpy()
    found = TASK.answers(TASK.predictions(outputs)[0], ["a", "b", "c"], 2)
    assert [[(own["rank"], own["class"]) for own in each] for each in found] == [
        [(1, "b"), (2, "c")],
        [(1, "a"), (2, "b")],
    ]
    for each, probabilities in zip(found, expected, strict=True):
        given = [own["probability"] for own in each]
        assert given == pytest.approx(sorted(probabilities, reverse=True)[:2], rel=1e-6)
        assert tuple(each[0]) == ("rank", "class", "probability")
    assert [len(each) for each in TASK.answers(TASK.predictions(outputs)[0], ["a", "b", "c"], 9)] == [3, 3]


def test_another_task_answers_with_what_it_predicts(number):
    predictions = number.predictions(torch.tensor([[[1.5], [-2.0]]]))[0]
    assert number.answers(predictions, [], 1) == [[{"value": 1.5}], [{"value": -2.0}]]


def test_one_class_is_refused(tmp_path):
    with pytest.raises(lc.UserError, match="one class"):
        TASK.outputs(["a"])
    assert TASK.outputs(["a", "b", "c"]) == 3


def test_metrics_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 50, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(8, (50,), generator=generator)
    predictions = TASK.predictions(outputs)
    means = {
        m.name: [m.value(own.tolist()) for own in m.terms(predictions, labels).double().mean(1)] for m in TASK.metrics
    }
    for trial in range(2):
        chances = outputs[trial].softmax(-1).numpy()
        assert means["loss"][trial] == pytest.approx(log_loss(labels, chances, labels=range(8)))
        for name, k in (("top1", 1), ("top5", 5)):
            assert means[name][trial] == pytest.approx(
                100 * top_k_accuracy_score(labels, chances, k=k, labels=range(8))
            )


def test_a_task_in_one_file_trains_and_is_evaluated(number, tiny_cache, tmp_path):
    run = lc.train(tiny_cache, out=tmp_path / "run", val_fraction=0.3, head="all", **OPTIONS).run
    lines = results(run)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    figures = lc.evaluate_run(run, device="cpu")
    assert figures["mae"] == pytest.approx(lines[-1]["val_mae"], rel=1e-4)
    model, targets = lc.load_adapter(run, device="cpu"), []
    with lc.batches(tiny_cache, points=model.points, val_fraction=0.3, device="cpu") as batches:
        for batch in batches.held_out():
            targets += [(100 + 10 * batch.labels.double(), model(batch.blocks)[:, 0].detach().double())]
    truth, answers = (torch.cat(parts) for parts in zip(*targets, strict=True))
    assert figures["mae"] == pytest.approx(float((truth - answers).abs().mean()), rel=1e-4)
    assert figures["loss"] == pytest.approx(float((truth - answers).square().mean()), rel=1e-4)
    explained = 1 - float((truth - answers).square().mean() / truth.var(correction=0))
    assert figures["r2"] == pytest.approx(explained, rel=1e-3)
    assert json.loads((run / "adapter/config.json").read_text())["task"] == "number"
    with pytest.raises(lc.UserError, match="learns the task 'number'"):
        lc.compare(run, device="cpu")


@pytest.mark.usefixtures("no_figures")
def test_trials_of_a_task_in_one_file_train_together_and_the_best_is_chosen(number, tiny_cache, tmp_path):
    """Each as by itself, and lower errors are better."""
    options = {name: value for name, value in OPTIONS.items() if name not in ("lr", "device")}
    config = TrainConfig(**options, val_fraction=0.3, head="last")
    rates = [1e-4, 3e-2]
    found = lc.sweep(tiny_cache, space={"lr": rates}, config=config, out=tmp_path / "sweep", device="cpu")
    alone = lc.train(tiny_cache, out=tmp_path / "alone", config=config, lr=rates[1], device="cpu").run
    for ours, theirs in zip(results(tmp_path / "sweep" / "trials" / "0001"), results(alone), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert ours["val_mae"] == pytest.approx(theirs["val_mae"], rel=1e-3)
    errors = [trial.value for trial in found.record.trials]
    assert (found.record.chosen, errors[1] < errors[0]) == (1, True)
    told = findings(found.record)
    assert f"validation mean absolute error {errors[1]:.2f} after 4 epochs" in told["Chosen"]
    assert told["Line to beat"].startswith("There is no probe to beat")
    stored = json.loads((tmp_path / "sweep" / "record.json").read_text())
    assert (stored["task"], stored["trials"][0]["task"]) == ("number", "number")
    searched = lc.train_auto(tiny_cache, config=config, grid={"lr": rates}, out=tmp_path / "auto", device="cpu").found
    assert searched.options == {"lr": 3e-2}
    assert [own.value for own in searched.tried] == sorted((own.value for own in searched.tried), reverse=True)


def test_what_a_task_does_not_offer_is_refused(number, tiny_cache, tmp_path):
    with pytest.raises(lc.UserError, match="sampling is 'balanced', but the task 'number' has no classes"):
        lc.train(tiny_cache, out=tmp_path / "run", **(OPTIONS | {"sampling": "balanced"}))
    mixed = OnlineConfig(backbone="tiny", dataset="tiny", mixup=0.5, workers=1)
    with pytest.raises(lc.UserError, match="targets of the task 'number' cannot be mixed"):
        lc.train(online=mixed, backbone=tiny_backbone(), dataset=tiny_samples(), out=tmp_path / "run", **OPTIONS)


def test_an_online_run_learns_the_same_targets(number, tiny_cache, tmp_path):
    options = OPTIONS | {"epochs": 1}
    cached = lc.train(tiny_cache, out=tmp_path / "cached", **options).run
    fresh = OnlineConfig(backbone="tiny", dataset="tiny", workers=1, precision="float32")
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    mixed = lc.train(
        tiny_cache, online=OnlineConfig(**(vars(fresh) | {"share": 0.5})), out=tmp_path / "mixed", **given, **options
    ).run
    for name in ("train_loss", "val_mae"):
        np.testing.assert_allclose(results(mixed)[0][name], results(cached)[0][name], rtol=1e-4)
