import json
from dataclasses import replace
from pathlib import Path

import pytest

from losa_cache.errors import UserError
from losa_cache.files import with_seal
from losa_cache.pareto.config import ParetoConfig
from losa_cache.pareto.record import FILE, Extraction, Study, Work, load_study, require_same
from losa_cache.pareto.report import write_study
from losa_cache.pareto.rows import COSTS, front, rows
from losa_cache.pareto.table import cells, markdown, notes, text
from tests.pareto.studies import ALL, finished, made_up, study


@pytest.fixture(scope="module")
def every():
    """A study of every method, to its end."""
    return finished(study())


def test_figures_follow_from_what_was_measured():
    losa, full = rows(finished(study("losa", "full")))
    assert losa.parameters == 1485
    assert losa.classifier == 485
    assert losa.top1 == pytest.approx((85.0, 85.4, 85.8))
    assert losa.mean == pytest.approx(85.4)
    assert losa.deviation == pytest.approx(0.4)
    assert losa.seconds() == pytest.approx(20 + 20)  # the extraction, and a training
    assert losa.seconds(16) == pytest.approx(20 + 16 * 20)
    assert losa.peak_gb == 1.5  # of the extraction: its training takes 1.0
    assert losa.gmacs == pytest.approx(4.2)
    assert (losa.choices, losa.choice_seconds) == (3, 60)
    assert full.seconds() == pytest.approx(21)
    assert full.seconds(16) == pytest.approx(16 * 21)
    assert full.peak_gb == 4.0


def test_a_front_holds_exactly_what_nothing_beats(every):
    found = rows(every)
    for cost in COSTS:
        unbeaten = {
            one.name
            for one in found
            if not any(
                cost.of(other) <= cost.of(one)
                and other.mean >= one.mean
                and (cost.of(other) < cost.of(one) or other.mean > one.mean)
                for other in found
            )
        }
        assert {row.name for row in front(found, cost)} == unbeaten


def test_what_is_not_known_is_in_no_front_and_has_no_number():
    begun = finished(study("losa", "full", config=ParetoConfig(seeds=1)))
    (last,) = [name for name in begun.works if name.startswith("full/") and name.endswith("seed-0")]
    (test,) = [name for name in begun.works if name.startswith("full/") and name.endswith("/test")]
    works = {**begun.works, last: Work(error="it was killed.")}
    del works[test]
    broken = Study(begun.options, begun.methods, begun.machine, works)
    losa, full = rows(broken)
    assert (full.mean, full.parameters, full.error) == (None, None, "it was killed.")
    assert losa.deviation is None  # of one seed
    assert all(front([losa, full], cost) == [losa] for cost in COSTS)
    assert "full: it was killed." in notes(broken)
    assert "full" in text(broken)


def test_what_was_interrupted_has_no_seconds_and_that_is_said():
    begun = finished(study("losa", "full", config=ParetoConfig(rates=2, seeds=2)))
    works = {name: replace(work, seconds=None) for name, work in begun.works.items() if name.startswith("losa/")}
    works["full/lr-0.0001/seed-1"] = replace(begun.work("full/lr-0.0001/seed-1"), seconds=None)
    broken = replace(begun, works={**begun.works, **works, "train.zarr": Work(Extraction(None))})
    losa, full = rows(broken)
    assert (losa.train_seconds, losa.extract_seconds, losa.seconds(), losa.choice_seconds) == (None,) * 4
    assert losa.peak_gb == 1.0  # of its trainings
    assert (full.train_seconds, full.timed, full.trained) == (21, 1, 2)  # that of the seed that was not interrupted
    told = "\n".join(notes(broken))
    assert "have no seconds and no energy: losa (2 of 2), full (1 of 2)." in told
    assert "4 trainings and 42 s, without the 2 that were interrupted." in told
    assert "its seconds are not known." in told
    assert "Its peak memory is not known" in told
    assert "interrupted" not in (whole := "\n".join(notes(begun)))
    assert "Peak memory is that of the extraction for losa, whose" in whole
    head, lines = cells(broken)
    assert [line[head.index("s in all")] for line in lines if line[0] == "losa"] == ["-"]


def test_the_record_is_read_back_and_tells_the_figures(every, tmp_path):
    write_study(every, tmp_path)
    assert load_study(tmp_path) == every
    told = json.loads((tmp_path / FILE).read_text())
    assert [row["name"] for row in told["rows"]] == list(ALL)
    assert told["rows"][0]["seconds_16"] == pytest.approx(20 + 16 * 20)
    assert set(told["fronts"]) == {"parameters", "time", "memory", "inference"}


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1}', "[" * 10**5, '{"format": "other", "options": {}}'])
def test_a_file_of_something_else_is_one_sentence(content, tmp_path):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path)


def test_an_altered_record_is_refused(tmp_path):
    write_study(finished(study("losa")), tmp_path)
    content = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(content.replace('"top1": 85.0', '"top1": 95.0'))
    with pytest.raises(UserError, match="it was altered"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("losa/lr-0.001/seed-0", {}),
        ("losa/lr-0.001/seed-0", {"parameters": None}),
        ("losa/lr-0.001/seed-0", {"parameters": {"side": 3}}),
        ("losa/lr-0.001/seed-0", {"images_per_second": float("nan")}),
        ("losa/lr-0.001/seed-0/test", {"top1": "x"}),
        ("losa/lr-0.001/seed-0/test", {"top1": 1e308}),
        ("losa/lr-0.001/seed-0/test", {"top1": float("nan")}),
        ("train.zarr", {"peak_gb": "x"}),
        ("train.zarr", -5),
    ],
)
def test_a_record_with_impossible_figures_is_refused_whatever_its_seal(name, altered, tmp_path):
    write_study(finished(study("losa", config=ParetoConfig(rates=1, seeds=1))), tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    del content["seal"]
    work = content["works"][name]
    if altered == -5:
        work["seconds"] = altered
    else:
        work["result"] = work["result"] | altered if altered else altered
    (tmp_path / FILE).write_text(json.dumps(with_seal(content)))
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path)


def test_other_options_are_refused_by_name():
    ours = study().options
    require_same(Path("study"), ours, ours)
    with pytest.raises(UserError, match="holds a comparison with epochs 30, not 10"):
        require_same(Path("study"), ours | {"epochs": 10}, ours)


def test_the_tables_have_a_line_for_each_method_the_best_on_top(every):
    found = {row.name: row.mean for row in rows(every)}
    lines = [line.split("|")[1:3] for line in markdown(every).splitlines() if line.startswith("|")][2:]
    means = [found[name.strip()] for name, _ in lines]
    assert len(means) == len(ALL)
    assert means == sorted(means, reverse=True)
    assert all(name in text(every) for name in ALL)


def test_the_notes_state_the_budget_and_the_papers_ratio_beside_ours():
    begun = finished(study("losa", "full"))
    (budget,) = [note for note in notes(begun) if note.startswith("The choice of learning rates")]
    assert budget == "The choice of learning rates took 6 trainings and 123 s."
    assert any("The chosen rate is the least or the largest tried of losa (0.00032)" in note for note in notes(begun))


def test_the_papers_ratio_stands_beside_that_of_the_same_kind_of_training():
    whole = finished(study("losa", "losa:online", "lora"))
    (paper,) = [note for note in notes(whole) if note.startswith("The paper: LoSA trains")]
    assert "against lora: losa:online" in paper
    assert any("without the extraction, against lora: losa 1" in note for note in notes(whole))
    assert not [note for note in notes(finished(study("losa", "lora"))) if note.startswith("The paper: LoSA trains")]


def test_the_notes_name_the_classifiers_that_are_not_the_papers():
    told = notes(finished(study("losa", "linear", "losa:online", "full")))
    assert [note for note in told if note.startswith("The classifier of losa, losa:online reads all layers")]
    paper = notes(finished(study("losa", "linear", "full", config=ParetoConfig(recipe="paper"))))
    assert not [note for note in paper if "reads all layers" in note]


def test_energy_has_a_column_where_it_was_read():
    begun = finished(study("full", config=ParetoConfig(rates=1, seeds=1)))
    assert "kJ" not in cells(begun)[0]
    assert any("no meter of this machine" in note for note in notes(begun))
    name = "full/lr-0.0001/seed-0"
    read = begun.ended(name, replace(begun.work(name), result=made_up(0, 1, joules=2500.0)))
    head, (line,) = cells(read)
    assert line[head.index("kJ")] == "2.5"


def test_seconds_that_are_mostly_not_of_steps_are_told():
    begun = finished(study("full", config=ParetoConfig(rates=1, seeds=1)))
    name = "full/lr-0.0001/seed-0"
    short = begun.ended(name, replace(begun.work(name), result=made_up(0, 1, epoch_seconds=5.0)))
    assert not [note for note in notes(begun) if "not training steps" in note]
    assert [note for note in notes(short) if note.startswith("More than half of the seconds of full are not")]


@pytest.mark.parametrize(("speed", "said"), [(1713.2, "1,713"), (171.32, "171"), (17.132, "17.1"), (1.7132, "1.71")])
def test_speeds_are_written_out(speed, said):
    begun = finished(study("full", config=ParetoConfig(rates=1, seeds=1)))
    name = "full/lr-0.0001/seed-0"
    head, (line,) = cells(begun.ended(name, Work(made_up(0, 1, images_per_second=speed))))
    assert line[head.index("images/s")] == said
