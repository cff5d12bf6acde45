"""Target sets of a cache are learned, evaluated, searched and predicted, whatever their task."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

import losa_cache as lc
from losa_cache.apply.export.about import about
from losa_cache.cache.store import open_cache
from losa_cache.extract.extract import extract
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.run import summary
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.engine.sweep_data import SweepData
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import CLASS, MULTILABEL, NUMBERS, TargetSet
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from tests.conftest import results, tiny_backbone, tiny_samples

OPTIONS = {"rank": 2, "epochs": 3, "batch_size": 8, "lr": 1e-2, "val_fraction": 0.4}


@pytest.fixture
def cache(tiny_cache):
    """With a target set of each kind that is made of the labels."""
    labels = tiny_cache.target_set("labels").values
    noise = np.random.default_rng(0)
    numbers = np.stack([1000 + 50 * labels, -labels], 1) + noise.normal(size=(len(labels), 2))
    many = np.stack([labels == 0, labels > 0, labels % 2 == 0], 1).astype(np.int8)
    many[noise.random(many.shape) < 0.1] = -1
    for targets in (
        TargetSet("size", NUMBERS, ["weight", "height"], numbers.astype(np.float32)),
        TargetSet("many", MULTILABEL, ["first", "others", "even"], many),
        TargetSet("grade", CLASS, ["low", "middle", "high"], labels % 3),
    ):
        add_targets(tiny_cache, targets)
    return open_cache(tiny_cache.path)


def outputs_of(run, cache, targets):
    """What the adapter of a run gives for the samples that it held out, in float64, and their targets."""
    model, found, places = lc.load_adapter(run, device="cpu"), [], []
    of_id = {name: place for place, name in enumerate(cache.sample_ids)}
    with lc.batches(cache, points=model.points, val_fraction=OPTIONS["val_fraction"], device="cpu") as batches:
        for batch in batches.held_out():
            found.append(model(batch.blocks).detach().double())
            places += [of_id[name] for name in batch.ids]
    return model, torch.cat(found).numpy(), cache.target_set(targets).values[places]


def test_numbers(cache, tmp_path):
    run = lc.train(cache, task="regression", head="last", out=tmp_path / "run", device="cpu", **OPTIONS).run
    model, outputs, targets = outputs_of(run, cache, "size")
    figures = lc.evaluate_run(run, device="cpu")
    assert figures["r2"] == pytest.approx(r2_score(targets, outputs), rel=1e-4)
    assert figures["mae"] == pytest.approx(mean_absolute_error(targets, outputs), rel=1e-4)
    assert results(run)[-1]["val_r2"] == pytest.approx(figures["r2"], abs=1e-3)
    config = json.loads((run / "adapter" / "config.json").read_text())
    stored = cache.target_set("size")
    assert config["targets"] == {"name": "size", "kind": "numbers", "fingerprint": stored.fingerprint}
    assert config["classes"] == model.classes == ["weight", "height"]
    lc.predict({"a": run}, cache, out=tmp_path / "out.csv", device="cpu")
    with open(tmp_path / "out.csv") as file:
        (first, *_) = csv.DictReader(file)
    assert list(first) == ["id", "a.weight", "a.height"]
    assert 900 < float(first["a.weight"]) < 1300


def test_numbers_with_a_ridge_regression_beside_the_side_network(cache, tmp_path):
    """What is saved gives the held-out figures of the last epoch again, without what the probe saw of them later."""
    run = lc.train(cache, task="regression", out=tmp_path / "run", device="cpu", **OPTIONS).run
    last, figures = results(run)[-1], lc.evaluate_run(run, device="cpu")
    assert last["val_r2"] == pytest.approx(figures["r2"], abs=1e-4)
    assert last["val_mae"] == pytest.approx(figures["mae"], rel=1e-4)
    assert last["val_r2"] > last["val_side_r2"]  # the shares are chosen on these samples
    _, outputs, targets = outputs_of(run, cache, "size")  # the probe was fitted to these, too
    assert r2_score(targets, outputs) > last["val_r2"]


def test_several_labels_and_thresholds_that_held_out_samples_chose(cache, tmp_path):
    run = lc.train(cache, task="multilabel", out=tmp_path / "run", device="cpu", **OPTIONS).run
    model, outputs, targets = outputs_of(run, cache, "many")
    known = targets >= 0
    expected = [average_precision_score(targets[k, c], outputs[k, c]) for c, k in enumerate(known.T)]
    assert lc.evaluate_run(run, device="cpu")["map"] == pytest.approx(100 * np.mean(expected), rel=1e-6)
    chance = 1 / (1 + np.exp(-outputs))
    for label, chosen in enumerate(model.task.thresholds):
        truth, own = targets[known[:, label], label], chance[known[:, label], label]
        best = max(f1_score(truth, own >= threshold) for threshold in own)
        assert f1_score(truth, own >= chosen) == pytest.approx(best)
    lc.predict({"a": run}, cache, out=tmp_path / "out.csv", top_k=1, device="cpu")
    kept = lc.predict({"a": run}, cache, device="cpu").predictions
    exact: dict[str, list[float]] = {}
    with lc.batches(cache, points=model.points, val_fraction=0, device="cpu") as batches:
        for batch in batches:
            exact |= dict(zip(batch.ids, model(batch.blocks).sigmoid().tolist(), strict=True))
    with open(tmp_path / "out.csv") as file:
        lines = list(csv.DictReader(file))
    for line, entry in zip(lines, kept, strict=True):
        labels = entry["predictions"]["a"]
        assert [label["class"] for label in labels] == model.classes
        assert [label["predicted"] for label in labels] == [
            own >= threshold for own, threshold in zip(exact[entry["id"]], model.task.thresholds, strict=True)
        ]
        for label, own in zip(labels, exact[line["id"]], strict=True):
            assert float(line[f"a.{label['class']}.probability"]) == pytest.approx(own, rel=1e-4)
            assert line[f"a.{label['class']}.predicted"] == str(int(label["predicted"]))
    assert lc.predict({"a": run}, cache, out=tmp_path / "out.csv", device="cpu").rows == 23  # is read back
    assert about(model.config, [], [], [], None)["thresholds"] == model.task.thresholds
    told = ", ".join(f"{name} {own:.3f}" for name, own in zip(model.classes, model.task.thresholds, strict=True))
    assert f"is predicted: {told}\n" in (run / "adapter/README.md").read_text()
    entry = model.task.answers(torch.from_numpy(chance), model.classes, 3)[0]
    assert {own["class"]: own["predicted"] for own in entry} == {
        name: chance[0, place] >= model.task.thresholds[place] for place, name in enumerate(model.classes)
    }


def test_ordered_classes_and_classes_that_were_added(cache, tmp_path):
    run = lc.train(cache, task="ordinal", targets="grade", out=tmp_path / "run", device="cpu", **OPTIONS).run
    model, outputs, targets = outputs_of(run, cache, "grade")
    above = (1 / (1 + np.exp(-outputs))).cumprod(1)
    assert lc.evaluate_run(run, device="cpu")["mae"] == pytest.approx(np.abs((above > 0.5).sum(1) - targets).mean())
    options = OPTIONS | {"head": "last"}  # a probe would be fitted to the held-out samples, too
    added = lc.train(cache, targets="grade", out=tmp_path / "classes", device="cpu", **options).run
    model, outputs, targets = outputs_of(added, cache, "grade")
    assert model.classes == ["low", "middle", "high"]
    assert lc.evaluate_run(added, device="cpu")["top1"] == pytest.approx(100 * (outputs.argmax(1) == targets).mean())


@pytest.mark.parametrize("task", ["regression", pytest.param("multilabel", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_figures")
def test_trials_end_where_each_ends_alone_and_the_best_is_chosen(cache, tmp_path, task):
    config = TrainConfig(task=task, **(OPTIONS | {"lr": None}), head="last")
    rates = [1e-4, 3e-2]
    found = lc.sweep(cache, space={"lr": rates}, config=config, out=tmp_path / "sweep", device="cpu")
    metric = found.record.metric
    for number, rate in enumerate(rates):
        alone = results(lc.train(cache, out=tmp_path / f"{number}", config=config, lr=rate, device="cpu").run)
        for ours, theirs in zip(results(tmp_path / "sweep" / "trials" / f"{number:04}"), alone, strict=True):
            for name in ("train_loss", "val_loss", metric.held_out):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    values = [trial.value for trial in found.record.trials]
    assert values[found.record.chosen] == max(values)
    auto = lc.train_auto(cache, config=config, grid={"lr": rates}, out=tmp_path / "auto", device="cpu")
    assert auto.found.options["lr"] in rates


@pytest.mark.usefixtures("no_figures")
def test_trials_are_chosen_by_the_metric_that_is_named(cache, tmp_path):
    config = TrainConfig(**(OPTIONS | {"lr": None}), head="last", metric="macro_f1", loss="focal")
    found = lc.sweep(cache, space={"lr": [1e-4, 3e-2]}, config=config, out=tmp_path / "sweep", device="cpu")
    values = [trial.curve[-1]["val_macro_f1"] for trial in found.record.trials]
    assert [trial.value for trial in found.record.trials] == values
    assert values[found.record.chosen] == max(values)
    assert "macro F1" in found.record.protocol
    for line in found.record.to_beat.lines:
        assert summary(found)[f"probe_{line.reads.replace(' ', '_')}_val_macro_f1"] == line.others["macro_f1"]


@pytest.mark.slow
def test_a_mixed_run_learns_the_caches_targets(cache, tmp_path):
    online = lc.OnlineConfig(backbone="tiny", dataset="tiny", workers=1, precision="float32", share=0.5)
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples(), "device": "cpu"}
    options = OPTIONS | {"task": "regression", "epochs": 1}
    mixed = lc.train(cache, online=online, out=tmp_path / "mixed", **given, **options).run
    cached = lc.train(cache, out=tmp_path / "cached", device="cpu", **options).run
    assert results(mixed)[0]["val_mae"] == pytest.approx(results(cached)[0]["val_mae"], rel=1e-3)


@pytest.mark.usefixtures("no_figures")
def test_what_cannot_be_learned_is_a_sentence(cache, tmp_path):
    options = OPTIONS | {"out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(lc.UserError, match="has no target set 'sizes': choose one of labels, .*nearest: size"):
        lc.train(cache, task="regression", targets="sizes", **options)
    with pytest.raises(
        lc.UserError,
        match="'size' holds numbers, and the task 'classification' learns .*or --task regression",
    ):
        lc.train(cache, targets="size", **options)
    lc.train(cache, task="regression", **options)
    config = TrainConfig(task="regression", **(OPTIONS | {"lr": None}), head="last")
    lc.sweep(cache, space={"lr": [1e-3, 1e-2]}, config=config, out=tmp_path / "sweep", device="cpu")
    for finished in ("record.json", "report.html"):
        (tmp_path / "sweep" / finished).unlink()
    stored = cache.target_set("size")
    add_targets(cache, TargetSet("size", NUMBERS, stored.names, 2 * stored.values))
    with pytest.raises(lc.UserError, match="the target set of the sweep .* was replaced"):
        lc.resume_sweep(tmp_path / "sweep", device="cpu")
    with pytest.raises(lc.UserError, match="target set 'size' is not the one that run .* learned: put that one back"):
        lc.evaluate_run(tmp_path / "run", device="cpu")
    with pytest.raises(lc.UserError, match="target set 'size' of .* was replaced since run .* began: add that one"):
        lc.resume(tmp_path / "run", device="cpu")
    bare = TargetSet("size", NUMBERS, ["weight"], stored.values[:, :1])
    add_targets(cache, bare)
    with pytest.raises(lc.UserError, match="target set 'size' of .* was replaced since run .* began"):
        lc.resume(tmp_path / "run", device="cpu")
    with pytest.raises(lc.UserError, match="does not fit cache .*: classes"):
        lc.evaluate_run(tmp_path / "run", cache=cache.path, device="cpu")


def test_an_online_run_of_targets_is_evaluated_on_its_split_and_on_caches_that_have_them(cache, tmp_path, caplog):
    ids = tiny_samples().ids  # those of the test samples are among them
    numbers = np.random.default_rng(0).normal(size=len(ids)).astype(np.float32)
    file = tmp_path / "age.csv"
    file.write_text("id,age\n" + "".join(f"{name},{own}\n" for name, own in zip(ids, numbers, strict=True)))
    online = lc.OnlineConfig(backbone="t", dataset="t", workers=1, precision="float32", targets_from=str(file))
    given = {"backbone": tiny_backbone(), "device": "cpu"}
    options = OPTIONS | {"task": "regression", "epochs": 1, "head": "last"}
    run = lc.train(online=online, dataset=tiny_samples(), out=tmp_path / "run", **given, **options).run
    test = tiny_samples(9, split="test")
    direct = lc.evaluate_run(run, split="test", dataset=test, **given)
    cached = extract(given["backbone"], test, precision="float32", out=tmp_path / "test.zarr")
    command = f"losa-cache targets {cached.path} --from FILE --task regression --name age"
    with pytest.raises(lc.UserError, match=f"no target set 'age', which was learned: add it with {command}"):
        lc.evaluate_run(run, cache=cached.path, device="cpu")
    config = SweepConfig(
        str(cache.path), {"rank": Choices((2,))}, TrainConfig(targets="grade"), test_cache=str(cached.path)
    )
    with pytest.raises(lc.UserError, match="tests no trial: it has no target set 'grade'"):
        SweepData(cache, config, Placement(torch.device("cpu")), trials=1)
    own = lc.evaluate_run(run, dataset=tiny_samples(), **given)
    assert own["split"] == "held out of training" and command in caplog.text
    add_targets(cached, file, subset=True)
    added = lc.evaluate_run(run, device="cpu")
    assert (direct["samples"], added["on"]) == (9, str(cached.path))
    assert direct["mae"] == pytest.approx(added["mae"], rel=1e-4)
    rows = lc.predict({"a": run}, cached.path, device="cpu").predictions
    of_id = dict(zip(ids, numbers, strict=True))
    file.write_text(file.read_text().replace("image-000,", "image-000,1"))
    with pytest.raises(lc.UserError, match="target set 'age' was replaced since run .* began: put that one back"):
        lc.resume(run, dataset=tiny_samples(), **given)
    apart = [abs(row["predictions"]["a"][0] - of_id[row["id"]]) for row in rows]
    assert np.mean(apart) == pytest.approx(direct["mae"], rel=1e-4)
