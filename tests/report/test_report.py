"""What ``losa-cache eval`` tells beyond the means, as scikit-learn, a CSV reader and a parser of HTML have it."""

import csv
import io
import json
import math
import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

import losa_cache as lc
from losa_cache.cli import main
from losa_cache.data.transforms import InputSpec
from losa_cache.report.classes import class_details
from losa_cache.report.columns import column_details
from losa_cache.report.details import Details
from losa_cache.report.evaluation import Figure, figures_of
from losa_cache.report.images import images_of
from losa_cache.report.labels import label_details
from losa_cache.report.maps import depth_details, mask_details
from losa_cache.report.outcome import Outcome, OutcomeCollector
from losa_cache.report.sheet_chart import colours, painted
from losa_cache.report.write import write_report
from losa_cache.sidenet.adapter_folder import add_metrics, read_metrics
from losa_cache.tasks import get_task
from tests.sweep.test_report import HOSTILE, Page

N, NAMES = 40, ("cat", HOSTILE, "dog", "never")


@pytest.fixture
def random():
    return torch.Generator().manual_seed(3)


def outcome_of(task, predictions, targets, names=NAMES) -> Outcome:
    """Collect predictions as an evaluation does, in two batches."""
    kept = OutcomeCollector(task, names)
    for part in (slice(0, 25), slice(25, None)):
        ids = [f"{at}" for at in range(len(targets))[part]]
        kept(predictions[None, part], SimpleNamespace(ids=ids, labels=targets[part]))
    return kept.outcome()


def classes(random) -> Outcome:
    labels = torch.arange(N) // 2 % 3
    logits = torch.randn(N, 4, generator=random) + 1.5 * torch.nn.functional.one_hot(labels, 4)
    logits[:, 3] = -20
    return outcome_of(get_task("classification"), logits.log_softmax(-1), labels)


def test_means_over_groups_and_intervals(random):
    task, outcome = get_task("classification"), classes(random)
    groups = np.arange(N) // 2  # two samples of one class each
    values = {metric.name: float(outcome.figure(metric)) for metric in task.metrics}
    found = {own.name: own for own in figures_of(task, outcome, values, groups, intervals=True)}
    means = outcome.predictions.double().exp().reshape(-1, 2, 4).mean(1)
    means = (means / means.sum(1, keepdim=True)).numpy()
    truth = outcome.targets[::2].numpy()
    assert found["group_top1"].value == pytest.approx(100 * sk.accuracy_score(truth, means.argmax(1)))
    assert found["group_loss"].value == pytest.approx(sk.log_loss(truth, means, labels=range(4)), rel=1e-5)
    assert "group_auroc" not in found  # of two classes only
    right = (outcome.predictions.argmax(1) == outcome.targets).double().numpy()
    drawn = np.random.default_rng(5).integers(20, size=(4000, 20))
    expected = 100 * np.quantile(right.reshape(20, 2).mean(1)[drawn].mean(1), [0.025, 0.975])
    assert [found["top1"].low, found["top1"].high] == pytest.approx(expected, abs=3)  # whole groups are drawn
    assert found["macro_f1"].low < found["macro_f1"].value < found["macro_f1"].high
    mixed = figures_of(task, outcome, values, np.arange(N) // 4, intervals=False)  # of several classes
    assert not [own.name for own in mixed if own.name.startswith("group_")]
    assert [own.name for own in mixed if own.low is not None] == ["top1"]


def test_groups_of_different_sizes_are_averaged_one_by_one(random):
    task, groups = get_task("regression"), np.array([2, 0, 1, 2, 2, 1])
    targets = torch.tensor([3.0, 1.0, 2.0, 3.0, 3.0, 2.0])[:, None]
    predictions = torch.rand(6, 1, generator=random)
    outcome = outcome_of(task, predictions, targets, ["x"])
    found = {own.name: own.value for own in figures_of(task, outcome, {}, groups, intervals=False)}
    means = [float(predictions[groups == group].mean()) for group in range(3)]
    assert found["group_mae"] == pytest.approx(sk.mean_absolute_error([1, 2, 3], means))


def test_tables_are_those_of_scikit_learn(random, tmp_path):
    outcome = classes(random)
    decided, labels = outcome.predictions.argmax(1), outcome.targets
    (table,) = class_details(outcome.predictions, decided, labels, NAMES).tables
    report = sk.classification_report(labels, decided, labels=range(4), output_dict=True, zero_division=0)
    lines = list(csv.DictReader(io.StringIO(table.csv().decode(), newline="")))
    assert [line["class"] for line in lines] == list(NAMES)
    for number, line in enumerate(lines[:3]):
        theirs = report[str(number)]
        ours = [float(line[name]) for name in ("support", "precision", "recall", "f1")]
        assert ours == pytest.approx([theirs[name] for name in ("support", "precision", "recall", "f1-score")])
    assert list(lines[3].values())[1:] == ["0", "", "", ""]

    targets = torch.randint(-1, 2, (N, 3), generator=random)
    scores = torch.rand(N, 3, generator=random)
    (table,) = label_details(scores, targets, NAMES[:3], [0.3, 0.5, 0.7]).tables
    for number, line in enumerate(table.records()):
        known = targets[:, number] >= 0
        truth, own = targets[known, number], scores[known, number]
        called = own >= [0.3, 0.5, 0.7][number]
        assert (line["known"], line["positive"]) == (int(known.sum()), int(truth.sum()))
        assert line["precision"] == pytest.approx(sk.precision_score(truth, called))
        assert line["recall"] == pytest.approx(sk.recall_score(truth, called))
        assert line["f1"] == pytest.approx(sk.f1_score(truth, called))
        assert line["average precision"] == pytest.approx(sk.average_precision_score(truth, own))

    numbers = torch.randn(N, 2, generator=random)
    (table,) = column_details(numbers + 0.1, numbers, ["x", "y"]).tables
    assert table.records()[1]["R2"] == pytest.approx(sk.r2_score(numbers[:, 1], numbers[:, 1] + 0.1), rel=1e-4)


def test_masks_have_a_line_a_class_over_all_images(random):
    task = get_task("segmentation").restored({"size": [8, 8]})
    masks = torch.randint(3, (N, 8, 8), generator=random).to(torch.uint8)
    masks[0] = 255
    logits = torch.randn(N, 4, 4, 4, generator=random)
    outcome = outcome_of(task, logits, masks)
    assert (len(outcome.predictions), len(outcome.ids)) == (12, N)  # more than examples are not kept
    (table,), (sheet,) = (vars(task.details(outcome))[name] for name in ("tables", "charts"))
    decided = torch.nn.functional.interpolate(logits, size=(8, 8), mode="bilinear").argmax(1)
    truth, own = masks[1:].flatten(), decided[1:].flatten()
    expected = sk.jaccard_score(truth, own, average=None, labels=range(4))
    assert [line["iou"] for line in table.records()] == pytest.approx(expected.tolist())
    assert [line["precision"] for line in table.records()] == pytest.approx(
        sk.precision_score(truth, own, average=None, labels=range(4)).tolist()
    )
    assert len(sheet.rows) == 12 and (sheet.rows[0][1][0] == 128).all()  # nothing of the first mask is known
    low, high = outcome.interval(task.selection)
    assert low < 100 * expected.mean() < high


def test_a_report_is_one_page_with_the_charts_beside_it(random, tmp_path):
    task, outcome = get_task("classification"), classes(random)
    values = {metric.name: float(outcome.figure(metric)) for metric in task.metrics}
    figures = figures_of(task, outcome, values, intervals=False)
    numbers = torch.randn(N, 3, generator=random)
    ours, scatter = task.details(outcome), column_details(numbers, numbers, ["x", "y", "$z"])
    masks = torch.randint(3, (2, 6, 6), generator=random).to(torch.uint8)
    shown = Outcome(["a", HOSTILE], masks, masks, {}, NAMES[:3], [None, np.zeros((6, 6, 3), np.uint8)])
    sheet = mask_details(shown, masks.numpy(), np.ones((3, 3)))
    charts = [*ours.charts, *scatter.charts, *sheet.charts]
    about = {"on": HOSTILE, "split": "test", "samples": N, "adapter": "run"}
    path = write_report(tmp_path / "report", about, figures, Details(ours.tables, charts), task=task)
    page = Page(path.read_text("utf-8"))
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    for chart in charts:
        with Image.open(tmp_path / "report" / f"{chart.name}.png") as picture:
            assert picture.convert("L").getextrema()[0] < 200  # something is drawn
    cells = page.text["td"]
    assert any("evil.example" in cell for cell in cells) and f"{values['top1']:.1f} %" in cells
    stored = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert (stored["samples"], stored["selected_by"], stored["figures"]["top1"]["value"]) == (N, "top1", values["top1"])
    assert stored["tables"]["classes"][0]["support"] == 14


def test_masks_are_painted_over_their_images():
    mask = np.array([[0, 1], [255, 0]], np.uint8)
    image = np.full((2, 2, 3), 200, np.uint8)
    plain, over = painted(mask, 2, None), painted(mask, 2, image)
    assert (plain[0, 1] == colours(2)[1]).all() and (plain[1, 0] == 128).all() and (over[1, 0] == 200).all()
    assert (over[0, 0] == (colours(2)[0].astype(int) + 200) // 2).all()
    assert len(np.unique(colours(255), axis=0)) == 255
    depths = torch.tensor([[[1.0, float("nan")], [2.0, 3.0]]])
    (sheet,) = depth_details(Outcome(["a"], depths, depths, {}, ["depth"]), depths.numpy()).charts
    assert sheet.heads == ["target", "prediction"]
    sheet.draw()


def test_images_go_through_the_transform_of_the_cache(tiny_cache, tmp_path):
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))
    picture.save(folder / "train" / "a.png")
    picture.save(tmp_path / "outside.png")
    found = images_of(folder, ["a.png", "../outside.png", "b.png"], tiny_cache.manifest)
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in tiny_cache.manifest.fields["input"].items()}
    expected = InputSpec(**fields).transform()(picture)
    assert (found[0].transpose(2, 0, 1) == expected.numpy()).all()
    assert found[1:] == [None, None]
    with pytest.raises(lc.UserError, match="holds none of the samples, such as 'b.png'"):
        images_of(folder, ["b.png"], tiny_cache.manifest)


def test_eval_reports_groups_and_writes_a_folder(tiny_cache, tmp_path, capsys, monkeypatch):
    (tmp_path / "groups.csv").write_text(
        "id,group\n" + "".join(f"{own},{int(own[-3:]) % 12}\n" for own in tiny_cache.sample_ids)
    )
    groups = {"group_by": str(tmp_path / "groups.csv")}
    options = {"epochs": 1, "rank": 2, "head": "last", "val_fraction": 0.5, "device": "cpu"}
    run = lc.train(tiny_cache, out=tmp_path / "run", **options, **groups).run
    found = lc.evaluate_run(run, report=tmp_path / "report", device="cpu")
    assert found["groups"] == 6 and found["samples"] in (11, 12)
    low, high = found["top1_interval"]
    assert low <= found["top1"] <= high
    assert json.loads((run / "eval.json").read_text()) == found
    assert "tables" not in json.loads((run / "adapter/metrics.json").read_text())[0]
    lines = csv.DictReader((tmp_path / "report/classes.csv").read_text().splitlines())
    assert sum(int(line["support"]) for line in lines) == found["samples"]
    assert {"group_top1", "group_loss", "balanced_accuracy", "ece"} <= found.keys()
    about = json.loads((tmp_path / "report/evaluation.json").read_text())
    side = 2 * (2 * 2 * 32 + 2 + 32 + 1) + 2 * (2 * 2 * 5 + 2 + 5 + 1)  # two channel layers, two of five tokens
    assert about["trained parameters"] == side + 3 * 32 + 3
    assert about["multiply-accumulates of the adapter"] == 4 * 2 * 2 * 5 * 32 + 3 * 32
    said = {}
    for options in (["--json"], []):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["losa-cache", "eval", str(run), "--device", "cpu", *options])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
        said[len(options)] = capsys.readouterr().out
    told = json.loads(said[1])
    assert told["tables"]["classes"][0]["class"] == "a" and told["group_top1"] == found["group_top1"]
    assert "top1_interval" in said[0]
    heading, *own = (line.split() for line in said[0].splitlines()[-4:])
    assert heading == ["class", "support", "precision", "recall", "f1"]
    assert [cells[:2] for cells in own] == [[line["class"], str(line["support"])] for line in told["tables"]["classes"]]
    with pytest.raises(lc.UserError, match="only a report shows images"):
        lc.evaluate_run(run, images=tmp_path)
    with pytest.raises(lc.UserError, match="a report of the task 'classification' shows no images"):
        lc.evaluate_run(run, images=tmp_path, report=tmp_path / "report")
    (tmp_path / "few.csv").write_text("id,group\nimage-001,x\n")
    with pytest.raises(lc.UserError, match="few.csv' gives no group to 1[01] of the samples"):
        lc.evaluate_run(run, group_by=str(tmp_path / "few.csv"))


def test_what_is_not_defined_is_null_in_files(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, out=tmp_path / "run", epochs=1, rank=2, head="last", val_fraction=0.3, device="cpu").run
    add_metrics(run, {"on": "a", "split": "test", "samples": 3, "top1": math.nan})
    assert read_metrics(run)[-1]["top1"] is None
    figures = [Figure("top1", get_task("classification").selection, math.nan)]
    about = {"on": "a", "split": "test", "samples": 3, "adapter": "run"}
    write_report(tmp_path / "report", about, figures, Details(), task=get_task("classification"))
    strict = msgspec.json.decode((tmp_path / "report/evaluation.json").read_bytes())  # takes no NaN
    assert strict["figures"]["top1"]["value"] is None
