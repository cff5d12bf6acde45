"""The line to beat against scikit-learn, and where it is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from losa_cache.cache.store import open_cache
from losa_cache.extract.extract import extract
from losa_cache.files import write_sealed
from losa_cache.probe.features import read_features
from losa_cache.probe.record import RIDGE
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.probes import ALL, lines_to_beat
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.engine.sweep_data import SweepData
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import CLASS, TargetSet
from losa_cache.tasks.classification import MACRO_F1, TOP1
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from losa_cache.train.training_data import selected
from tests.conftest import tiny_backbone, tiny_samples

CPU = torch.device("cpu")


def probed(cache, path, metric=None, **options):
    chosen = selected(cache, TrainConfig(val_fraction=0.3))
    return lines_to_beat(
        path, (cache, chosen.train), (cache, chosen.held_out), CPU, config=TrainConfig(metric=metric), **options
    )


def test_it_is_fitted_to_training_samples_alone_and_for_the_test_to_all(tiny_cache, tmp_path):
    test = extract(tiny_backbone(), tiny_samples(40, split="test"), precision="float32", out=tmp_path / "test.zarr")
    chosen = selected(tiny_cache, TrainConfig(val_fraction=0.3))
    found = probed(tiny_cache, tmp_path / "probe.json", test=test)

    def like(line):
        ridge, logistic = RidgeClassifier(1 / line.c), LogisticRegression(C=line.c, tol=1e-10, max_iter=5000)
        return make_pipeline(StandardScaler(), ridge if line.method == RIDGE else logistic)

    def top1(line, fitted, cache, judged):
        ours, theirs = read_features(tiny_cache, fitted, Placement(CPU)), read_features(cache, judged, Placement(CPU))
        point, model = None if line.reads == ALL else "block.4", like(line)
        model.fit(ours.of(point, line.rows), ours.labels)
        return pytest.approx(100 * model.score(theirs.of(point, line.rows), theirs.labels))

    f1 = probed(tiny_cache, tmp_path / "probe.json", metric=MACRO_F1.name)  # fitted again for it
    for line, own in zip(found.lines, f1.lines, strict=True):
        ours, theirs = (read_features(tiny_cache, part, Placement(CPU)) for part in (chosen.train, chosen.held_out))
        point, model = None if line.reads == ALL else "block.4", like(line)
        model.fit(ours.of(point, line.rows), ours.labels)
        expected = f1_score(theirs.labels, model.predict(theirs.of(point, line.rows)), average="macro")
        assert own.held_out(MACRO_F1) == pytest.approx(100 * expected)
        assert (line.held_out(MACRO_F1), line.held_out(TOP1)) == (None, line.held_out_top1)
    for line in found.lines:
        assert line.held_out_top1 == top1(line, chosen.train, tiny_cache, chosen.held_out)
        assert line.test_top1 == top1(line, np.concatenate([chosen.train, chosen.held_out]), test, test.samples)
    assert [line.reads for line in found.lines] == ["last layer", "all layers"]


def test_it_learns_what_the_trials_learn(tiny_cache, tmp_path):
    two = TargetSet("two", CLASS, ["x", "y"], (tiny_cache.labels > 0).astype(np.int64))
    add_targets(tiny_cache, two)
    cache = open_cache(tiny_cache.path)
    sweep = SweepConfig(
        cache=str(cache.path), space={"rank": Choices([2])}, base=TrainConfig(targets="two", val_fraction=0.3)
    )
    found = SweepData(cache, sweep, Placement(CPU), trials=1).to_beat(tmp_path / "probe.json")
    alone = probed(replace(cache, labels=two.values), tmp_path / "alone.json")
    assert [line.held_out_top1 for line in found.lines] == [line.held_out_top1 for line in alone.lines]
    assert found.lines != probed(cache, tmp_path / "labels.json").lines


def test_few_held_out_samples_choose_nothing(tiny_cache, tmp_path):
    honest = probed(tiny_cache, tmp_path / "honest.json")
    labels = tiny_cache.labels.copy()
    held_out = selected(tiny_cache, TrainConfig(val_fraction=0.3)).held_out
    labels[held_out] = (labels[held_out] + 1) % 3
    wrong = probed(replace(tiny_cache, labels=labels), tmp_path / "wrong.json")
    assert [(line.rows, line.c) for line in wrong.lines] == [(line.rows, line.c) for line in honest.lines]
    assert wrong.lines != honest.lines
    assert "chosen by cross-validation over the 16 in 3 folds" in honest.told


def test_what_is_kept_is_read_unless_it_was_altered_and_no_refusal_is_kept(tiny_cache, tmp_path):
    path = tmp_path / "probe.json"
    of_one_class = probed(replace(tiny_cache, labels=np.zeros_like(tiny_cache.labels)), path)
    assert of_one_class.lines == []
    assert "all 16 training images are of class 'a'" in of_one_class.told
    assert not path.exists()
    found, raw = probed(tiny_cache, path), path.read_bytes()
    path.write_bytes(raw.replace(b'"held_out_top1":', b'"held_out_top1":1', 1))
    assert probed(tiny_cache, path) == found
    assert path.read_bytes() == raw
    write_sealed(path, {"lines": [], "told": "Another's."})
    assert probed(tiny_cache, path).told == "Another's."


def test_a_probe_that_would_take_longer_than_the_trials_is_left_out(tiny_cache, tmp_path):
    many = np.zeros(5001, np.int64)
    found = lines_to_beat(
        tmp_path / "probe.json", (tiny_cache, many), (tiny_cache, many[:5]), CPU, config=TrainConfig()
    )
    assert found.lines == [] and "5,001 training samples are more than 5,000" in found.told
