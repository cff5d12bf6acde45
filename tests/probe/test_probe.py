"""The verb: what is held out, what is read, what is said, and what is refused."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
import zarr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.cli import app
from losa_cache.extract.extract import extract
from losa_cache.probe.features import read_features
from losa_cache.probe.folds import cross_validation, held_out_fold
from losa_cache.probe.images import choose_images, share_that_fits
from losa_cache.probe.lines import Data, probe_features
from losa_cache.probe.neighbours import by_class_mean, vote
from losa_cache.probe.record import ALL, LOGISTIC, RIDGE, Counts, ProbeRecord, text
from losa_cache.probe.tuning import SCALES, tune
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import CLASS, TargetSet
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from losa_cache.train.training_data import frozen_tail, selected
from tests.conftest import tiny_backbone, tiny_samples

CPU = torch.device("cpu")


def test_features_are_pooled_rows_of_the_blocks_and_what_the_tail_makes_of_the_last(tiny_cache):
    order = np.random.default_rng(0).permutation(tiny_cache.samples)
    found = read_features(tiny_cache, order, Placement(CPU))
    assert found.points == [f"block.{layer}" for layer in (1, 2, 3, 4)]
    assert found.kinds == ("cls", "mean", "both")
    stored = torch.from_numpy(zarr.open_array(str(tiny_cache.path / "activations/block"), mode="r")[:])[order]
    normed = (stored - stored.mean(-1, keepdim=True)) / (stored.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(found.of("block.2", "cls"), normed[:, 1, 0])
    torch.testing.assert_close(found.of("block.4", "mean"), normed[:, 3, 1:].mean(1))
    rows = torch.stack([normed[:, :, 0], normed[:, :, 1:].mean(2)], 2)
    torch.testing.assert_close(found.of(None, "both"), rows.flatten(1))
    torch.testing.assert_close(found.tail, frozen_tail(tiny_cache)(stored[:, 3]))
    assert found.ids == [tiny_cache.sample_ids[sample] for sample in order]


def test_int8_and_skipped_samples(tmp_path):
    cache = extract(
        tiny_backbone(), tiny_samples(bad=(3,)), precision="int8", on_error="skip", out=tmp_path / "int8.zarr"
    )
    found = read_features(cache, cache.samples, Placement(CPU))
    assert len(found.ids) == 22
    assert "image-003" not in found.ids
    whole = extract(tiny_backbone(), tiny_samples(), precision="float32", out=tmp_path / "whole.zarr")
    places = [whole.sample_ids.index(one) for one in found.ids]
    exact = read_features(whole, np.array(places), Placement(CPU))
    assert (found.rows - exact.rows).norm() < 0.02 * exact.rows.norm()


def test_what_is_held_out_is_what_train_holds_out(tiny_cache, tmp_path):
    for options in ({"val_fraction": 0.3}, {"val_fraction": 0.2, "limit": 7}):
        config = TrainConfig(**options)
        images, expected = choose_images(tiny_cache, None, config, CPU), selected(tiny_cache, config)
        assert images.train.tolist() == expected.train.tolist()
        assert images.held_out.tolist() == expected.held_out.tolist()
        assert "cross-validation" in images.folds.told
        together = sorted(place for _, held in images.folds.parts for place in held.tolist())
        assert together == list(range(len(images.fitted)))
    groups = tmp_path / "groups.csv"
    groups.write_text("id,group\n" + "".join(f"{own},{int(own[-3:]) % 5}\n" for own in tiny_cache.sample_ids))
    grouped = TrainConfig(val_fraction=0.3, group_by=str(groups))
    images, expected = choose_images(tiny_cache, None, grouped, CPU), selected(tiny_cache, grouped)
    ((_, theirs),) = images.folds.parts  # folds would mix the groups
    assert images.fitted[theirs].tolist() == expected.held_out.tolist()
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(f"image-{number:03d}" for number in range(6)))
    images = choose_images(tiny_cache, None, TrainConfig(val_ids=str(ids)), CPU)
    ((ours, theirs),) = images.folds.parts
    held = {tiny_cache.sample_ids[sample] for sample in images.fitted[theirs]}
    assert held == set(ids.read_text().split())
    assert len(held) == 6
    assert len(ours) == 23 - 6


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures", "few_values_of_c")
def test_another_target_set_is_probed_and_tested(tiny_cache, tmp_path):
    test = extract(tiny_backbone(), tiny_samples(17, split="test"), precision="float32", out=tmp_path / "test.zarr")
    places = [int(name[-3:]) for name in tiny_cache.sample_ids], [int(name[-3:]) for name in test.sample_ids]
    for cache, numbers in zip((tiny_cache, test), places, strict=True):
        add_targets(cache, TargetSet("even", CLASS, ["even", "odd"], np.array(numbers) % 2))
    found = lc.probe(tiny_cache.path, targets="even", val_fraction=0.3, out=tmp_path / "probe", device="cpu")
    assert found.record.title.startswith("Probes of tiny, even:") and found.record.test_cache == str(test.path)
    assert found.test_labels.tolist() == [int(name[-3:]) % 2 for name in found.test_ids]
    assert {len(fit.bias) for fit in found.fits.values()} == {2}
    with pytest.raises(lc.UserError, match="no target set 'evn'"):
        lc.probe(tiny_cache.path, targets="evn", device="cpu")
    add_targets(test, TargetSet("even", CLASS, ["odd", "even"], 1 - np.array(places[1]) % 2))  # matched by name
    again = lc.probe(tiny_cache.path, test=test.path, targets="even", val_fraction=0.3, device="cpu")
    assert again.test_labels.tolist() == found.test_labels.tolist()
    add_targets(test, TargetSet("even", CLASS, ["odd", "prime"], np.array(places[1]) % 2))
    with pytest.raises(lc.UserError, match="is no test of .* knows no 'prime'"):
        lc.probe(tiny_cache.path, test=test.path, targets="even", device="cpu")


def test_folds_hold_every_class_evenly_and_depend_on_the_seed_alone():
    labels = np.random.default_rng(0).integers(0, 4, 103)
    folds = cross_validation(labels, seed=1)
    for ours, theirs in folds.parts:
        assert not set(ours.tolist()) & set(theirs.tolist())
        for number in range(4):
            assert abs((labels[theirs] == number).sum() - (labels == number).sum() / 5) <= 1
    again, other = cross_validation(labels, seed=1), cross_validation(labels, seed=2)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(folds.parts, again.parts, strict=True))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(folds.parts, other.parts, strict=True))


def test_folds_leave_groups_whole():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    labels = (groups + rng.integers(0, 2, 300)) % 3
    folds = cross_validation(labels, seed=1, groups=groups)
    held = [set(groups[theirs]) for _, theirs in folds.parts]
    assert sum(map(len, held)) == len(set().union(*held)) == len(set(groups))
    assert sorted(np.concatenate([theirs for _, theirs in folds.parts])) == list(range(300))
    for ours, theirs in folds.parts:
        assert not set(groups[ours]) & set(groups[theirs]) and len(ours) + len(theirs) == 300
        assert (abs(np.bincount(labels[theirs], minlength=3) - np.bincount(labels) / 5) <= 8).all()


def test_c_is_chosen_as_scikit_learn_would_and_all_are_fitted_at_it():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 160)
    x = (rng.normal(size=(160, 20)) + rng.normal(size=(3, 20))[y] * 0.6) * 7 + 2
    cs = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    tuned = tune(torch.tensor(x), torch.tensor(y), 3, held_out_fold(100, 60), CPU, cs[::-1])[LOGISTIC]
    expected = []
    for c in cs:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=2000))
        shares = model.fit(x[:100], y[:100]).predict_proba(x[100:])
        expected.append((-(shares.argmax(1) == y[100:]).mean(), -np.log(shares[np.arange(60), y[100:]]).mean(), c))
    assert tuned.chosen.c == min(expected)[2]
    assert tuned.chosen.top1 == pytest.approx(-100 * min(expected)[0])
    assert tuned.chosen.loss == pytest.approx(min(expected)[1], rel=1e-3)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=tuned.chosen.c, tol=1e-10, max_iter=5000)).fit(x, y)
    np.testing.assert_allclose(torch.softmax(tuned.fit(torch.tensor(x)), 1), model.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize("features", [20, 200])  # fewer than samples, and more
def test_a_ridge_regression_is_chosen_as_scikit_learn_would_and_its_logits_have_the_least_loss(features):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 160)
    x = (rng.normal(size=(160, features)) + rng.normal(size=(3, features))[y] * 0.3) * 7 + 2
    cs = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    tuned = tune(torch.tensor(x), torch.tensor(y), 3, held_out_fold(100, 60), CPU, cs)[RIDGE]

    def predicted(c, fitted, held):
        model = make_pipeline(StandardScaler(), Ridge(alpha=1 / c)).fit(x[fitted], np.eye(3)[y[fitted]])
        return torch.tensor(model.predict(x[held]))

    expected = []
    truth = torch.tensor(y[100:])
    for c in cs:
        found = predicted(c, slice(100), slice(100, None))
        losses = {scale: float(F.cross_entropy(scale * found, truth)) for scale in SCALES}
        scale = min(losses, key=losses.get)
        expected.append((-100 * float((found.argmax(1) == truth).double().mean()), losses[scale], c, scale))
    top1, loss, c, scale = min(expected)
    assert (tuned.chosen.c, tuned.chosen.scale) == (c, scale)
    assert (tuned.chosen.top1, tuned.chosen.loss) == pytest.approx((-top1, loss), rel=1e-6)
    np.testing.assert_allclose(tuned.fit(torch.tensor(x)), scale * predicted(c, slice(160), slice(160)), atol=1e-6)


def test_neighbours_and_class_means_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 90)
    x, queries = (rng.normal(size=(count, 10)) for count in (90, 40))
    found = vote(torch.tensor(x), torch.tensor(y), torch.tensor(queries), 5)
    for k, predicted in found.items():
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        assert predicted.tolist() == model.fit(x, y).predict(queries).tolist()
    sums = np.stack([Normalizer().transform(x[y == number]).sum(0) for number in range(4)])
    expected = (queries @ Normalizer().transform(sums).T).argmax(1)
    assert by_class_mean(torch.tensor(x), torch.tensor(y), torch.tensor(queries), 5).tolist() == expected.tolist()


@pytest.mark.usefixtures("few_values_of_c")
def test_the_verb_finds_its_test_cache_writes_and_marks_the_line_to_beat(tiny_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    test = extract(tiny_backbone(), tiny_samples(30, split="test"), precision="float32", out=tmp_path / "test.zarr")
    (tmp_path / "ids.txt").write_text("\n".join(f"image-{number:03d}" for number in range(8)))
    app(["probe", str(tiny_cache.path), "--val-ids", "ids.txt", "--device", "cpu", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["test_cache"] == str(test.path)
    folder = tmp_path / "runs" / "tiny-probe-1"
    kept = json.loads((folder / "probe.json").read_text())
    assert {"folder": "runs/tiny-probe-1", **kept} == told
    assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")
    named = ("best", "last_layer", "best_layer", "all_layers")
    record = ProbeRecord.from_json({name: value for name, value in kept.items() if name not in named})
    assert record.images == Counts(15, 8, 30)
    assert record.best.held_out_top1 == max(line.held_out_top1 for line in record.lines)
    assert record.all_layers.reads == ALL
    on_all = [line for line in record.lines if line.reads == ALL]
    assert {line.method for line in on_all} == {LOGISTIC, RIDGE} and len(on_all) == 6
    assert record.all_layers.held_out_top1 == max(line.held_out_top1 for line in on_all)
    assert len([line for line in record.in_short() if line.reads == ALL]) == 3  # of each features the better one
    share = (record.best.test_top1 / 100 * 30 + 2) / 34  # two images right and two wrong beside the 30
    assert record.best.test_error == pytest.approx(100 * (share * (1 - share) / 34) ** 0.5)
    rows = [line.split() for line in text(record).splitlines()]
    assert next(row[1] for row in rows if row and row[0] == "*") == record.best.method.split()[0]
    assert record.best.name in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"val_fraction": 0.0}, "nothing is held out"),
        ({"limit": 2}, "2 training images and 3 classes"),
        ({"limit": 1}, "training images are of class"),
        (
            {"val_ids": ["image-000", "image-003", "image-006", "image-009", "image-012"]},
            "held-out images are of class",
        ),
        ({"val_ids": ["image-000"]}, "at least 5"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options, told, tiny_cache, tmp_path):
    if "val_ids" in options:
        (tmp_path / "ids.txt").write_text("\n".join(options["val_ids"]))
        options = {"val_ids": str(tmp_path / "ids.txt")}
    with pytest.raises(lc.UserError, match=told):
        lc.probe(tiny_cache, out=tmp_path / "out", device="cpu", **options)
    assert not (tmp_path / "out").exists()


def test_a_cache_that_is_no_test_is_refused(tiny_cache, tmp_path):
    other = extract(tiny_backbone(1), tiny_samples(split="test"), precision="float32", out=tmp_path / "other.zarr")
    with pytest.raises(lc.UserError, match=r"is no test of.*backbone\.weights"):
        lc.probe(tiny_cache, test=other, out=tmp_path / "out")
    with pytest.raises(lc.UserError, match="is the cache that is fitted"):
        lc.probe(tiny_cache, test=tiny_cache, out=tmp_path / "out")
    same = extract(tiny_backbone(), tiny_samples(), precision="float16", out=tmp_path / "same.zarr")
    with pytest.raises(lc.UserError, match="is of the images that are fitted"):
        lc.probe(tiny_cache, test=same, out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures", "few_values_of_c")
def test_images_that_are_fitted_are_no_known_test(tmp_path):
    one, _ = (
        extract(tiny_backbone(), tiny_samples(split="test"), precision=name, out=tmp_path / f"{name}.zarr")
        for name in ("float32", "float16")
    )
    assert lc.probe(one, out=tmp_path / "out", device="cpu").record.test_cache is None


def test_a_sample_that_is_not_finite_is_named(tmp_path):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[2].mlp.fc2.bias.fill_(torch.inf)
    cache = extract(backbone, tiny_samples(), precision="float32", out=tmp_path / "inf.zarr")
    with pytest.raises(lc.UserError, match="sample 'image-0"):
        lc.probe(cache, out=tmp_path / "out", device="cpu")


def test_a_class_without_images_is_told(tiny_cache):
    cache = replace(tiny_cache, labels=np.where(tiny_cache.labels == 2, 1, tiny_cache.labels))
    images = choose_images(cache, None, TrainConfig(val_fraction=0.3), CPU)
    assert images.notes == ["1 of 3 classes have no training image and are never predicted (c)."]
    data = Data(read_features(cache, images.fitted, Placement(CPU)), None, 3, held_out_fold(16, 7), CPU)
    data = replace(data, train=replace(data.train, rows=data.train.rows[:, -1:], points=["block.4"]))
    for one in probe_features(data, lambda share: None):
        assert one.predicted is None
        if one.tuned is not None and one.line.rows != "features":
            assert 2 not in one.tuned.fit(data.train.of("block.4", one.line.rows)).argmax(1)


def test_what_memory_does_not_hold_is_left_out_by_hash(tiny_cache, monkeypatch):
    assert share_that_fits(tiny_cache, 23, 0, 5, CPU) == 1
    whole = choose_images(tiny_cache, None, TrainConfig(val_fraction=0.3), CPU)
    monkeypatch.setattr(import_module("losa_cache.probe.images"), "available_memory", lambda device: 600_000)
    part = choose_images(tiny_cache, None, TrainConfig(val_fraction=0.3), CPU)
    assert 0 < len(part.train) < len(whole.train)
    assert set(part.train) < set(whole.train)
    assert "Memory holds" in part.notes[0]
    monkeypatch.setattr(import_module("losa_cache.probe.images"), "available_memory", lambda device: 100)
    with pytest.raises(lc.UserError, match="memory does not hold"):
        choose_images(tiny_cache, None, TrainConfig(val_fraction=0.3), CPU)


def test_pooling_of_a_trunk_without_class_token(tmp_path):
    backbone = tiny_backbone(class_token=False, global_pool="avg")
    cache = extract(backbone, tiny_samples(), precision="float32", out=tmp_path / "mean.zarr")
    assert pooling_of(cache.manifest.tail).rows == 1
    assert read_features(cache, cache.samples, Placement(CPU)).kinds == ("mean",)


@pytest.mark.usefixtures("no_figures", "few_values_of_c")
def test_a_folder_appears_with_all_of_its_files(tiny_cache, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(import_module("losa_cache.probe.report"), "write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            lc.probe(tiny_cache, out=tmp_path / "out", device="cpu")
    assert not list(tmp_path.glob("out*"))
