from pathlib import Path

import pytest
from typer.main import get_command

from losa_cache.cli import app
from losa_cache.pareto.config import ParetoConfig
from losa_cache.pareto.entries import parse_entry
from losa_cache.pareto.plan import chosen_rate, jobs, next_job, progress
from losa_cache.pareto.record import Extraction, Work
from losa_cache.pareto.rows import rows
from losa_cache.pareto.table import notes
from tests.pareto.studies import ALL, finished, made_up, study

FOLDER = Path("study")


def test_everything_is_done_once_in_its_order():
    whole = finished(study("losa", "full", config=ParetoConfig(seeds=2)))
    assert list(whole.works) == [
        "train.zarr",
        "test.zarr",
        "losa/lr-0.00032/held-out",
        "losa/lr-0.001/held-out",
        "losa/lr-0.0032/held-out",
        "losa/lr-0.00032/seed-0",
        "losa/lr-0.00032/seed-0/test",
        "losa/lr-0.00032/seed-1",
        "losa/lr-0.00032/seed-1/test",
        "full/lr-3.2e-05/held-out",
        "full/lr-0.0001/held-out",
        "full/lr-0.00032/held-out",
        "full/lr-3.2e-05/seed-0",
        "full/lr-3.2e-05/seed-0/test",
        "full/lr-3.2e-05/seed-1",
        "full/lr-3.2e-05/seed-1/test",
    ]
    assert progress(whole) == (len(whole.works), len(whole.works))
    assert progress(study("losa", "full", config=ParetoConfig(seeds=2))) == (0, len(whole.works))
    assert next_job(whole, FOLDER) is None


def test_all_methods_hold_out_the_same_share_and_then_nothing():
    whole = finished(study("losa", "losa:online", "full"))
    shares = {
        (job.name.rpartition("/")[2] == "held-out", job.words[job.words.index("--val-fraction") + 1])
        for job in jobs(whole, FOLDER)
        if job.kind == "train"
    }
    assert shares == {(True, "0.2"), (False, "0")}


def test_the_best_held_out_accuracy_decides_then_the_loss_and_what_failed_is_passed_over():
    begun, entry = study("losa", cache="c", test_cache="t"), parse_entry("losa")
    for top1, loss, rate in ((80, 0.5, "0.00032"), (80, 0.4, "0.001")):
        assert chosen_rate(begun, entry) is None
        figures = made_up(0, 1, val_top1=top1, val_loss=loss)
        begun = begun.ended(f"losa/lr-{rate}/held-out", Work(figures, seconds=1.0))
    last = next_job(begun, FOLDER)
    assert last is not None
    failed = begun.ended(last.name, Work(error="the loss of epoch 1 is nan."))
    assert chosen_rate(failed, entry) == 1e-3
    assert next_job(failed, FOLDER).name == "losa/lr-0.001/seed-0"
    assert next_job(failed.retried(), FOLDER).name == last.name


def test_without_a_choice_nothing_is_held_out():
    whole = finished(study("losa", config=ParetoConfig(rates=1, seeds=1)))
    assert list(whole.works) == ["train.zarr", "test.zarr", "losa/lr-0.001/seed-0", "losa/lr-0.001/seed-0/test"]


def test_a_training_that_failed_is_not_tested_and_the_next_method_goes_on():
    begun = study("losa", "full", config=ParetoConfig(rates=1, seeds=1), cache="c", test_cache="t")
    begun = begun.ended("losa/lr-0.001/seed-0", Work(error="it was killed."))
    assert next_job(begun, FOLDER).name == "full/lr-0.0001/seed-0"
    assert progress(begun) == (1, 3)  # the test of the first will not be done
    assert progress(finished(begun)) == (3, 3)


def test_a_training_that_diverged_is_never_chosen():
    """Its top-1 is that of outputs that are not numbers, which count as class 0."""
    begun, entry = study("losa", config=ParetoConfig(rates=2), cache="c", test_cache="t"), parse_entry("losa")
    for rate, figures in (
        ("0.001", made_up(0, 1, val_top1=60.0, val_loss=1.3)),
        ("0.0032", made_up(0, 1, val_loss=None)),
    ):
        begun = begun.ended(f"losa/lr-{rate}/held-out", Work(figures))
    assert chosen_rate(begun, entry) == 1e-3
    (row,) = rows(begun)
    assert row.failures == ("at rate 0.0032: its held-out loss was not finite: it diverged.",)
    assert f"losa {row.failures[0]}" in notes(begun)
    lost = begun.ended("losa/lr-0.001/held-out", Work(made_up(0, 1, val_loss=None)))
    assert chosen_rate(lost, entry) is None
    assert "diverged" in rows(lost)[0].error
    assert next_job(lost, FOLDER) is None


def test_a_cache_that_is_given_is_no_piece_of_work():
    begun = study("losa", config=ParetoConfig(rates=1, seeds=1), cache="c", test_cache="t")
    assert progress(begun.ended("train.zarr", Work(Extraction(None)))) == (0, 2)


def test_costs_alone_need_no_data():
    shapes = finished(study("losa", "full", shape_only=True, dataset=None))
    assert list(shapes.works) == ["extraction/cost", "losa/cost", "full/cost"]
    assert progress(shapes) == (3, 3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_command_is_one_that_the_command_line_takes(checkpointing, tmp_path):
    verbs = get_command(app).commands
    given = {"img_size": 16, "workers": 2, "device": "cpu"}
    for name in ("c.zarr", "t.zarr", "data"):
        (tmp_path / name).mkdir()
    given |= {"dataset": "folder", "data_dir": str(tmp_path / "data"), "ignore_orientation": True}
    whole = finished(study(*ALL[:10], config=ParetoConfig(grad_checkpointing=checkpointing, recipe="paper"), **given))
    for job in jobs(whole, tmp_path):
        verb, *words = job.words
        words = [str(tmp_path / "c.zarr") if word.endswith(".zarr") and verb != "extract" else word for word in words]
        if verb == "eval":
            words[0] = str(tmp_path)
        context = verbs[verb].make_context(verb, words)
        asked = {"device": "cpu"} | ({"epochs": 30, "recipe": "paper"} if verb == "train" else {})
        assert {name: context.params[name] for name in asked} == asked
