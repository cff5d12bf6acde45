"""A run with a classifier over all layers: its probe is the tuned one, and what is saved gives what was measured."""

import json
import sys

import numpy as np
import pytest
import torch
import zarr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.cache.reader import BlockReader
from losa_cache.files import with_seal, without_seal, write_json
from losa_cache.train import all_layers
from losa_cache.train.sampler import hold_out
from tests.conftest import results

OPTIONS = {"rank": 2, "epochs": 2, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}


def rows_of(cache):
    """The class token and the mean of the patches of every layer, by zarr and torch alone."""
    blocks = torch.from_numpy(zarr.open_group(str(cache.path), mode="r")["activations/block"][:])
    normed = F.layer_norm(blocks.double(), blocks.shape[-1:], eps=1e-6)
    return torch.cat([normed[:, :, :1], normed[:, :, 1:].mean(2, keepdim=True)], 2).flatten(1).numpy()


def test_the_probe_is_scikit_learns_regressions_on_the_pooled_rows_of_the_training_samples(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, out=tmp_path / "run", **OPTIONS)
    state = torch.load(run.run / "checkpoint.pt", weights_only=True)["adapter"]
    train, held_out = hold_out(tiny_cache.samples, tiny_cache.sample_ids, 0.3)
    x = rows_of(tiny_cache)
    y, scaler = tiny_cache.labels, StandardScaler().fit(x[train])
    spread = x[train].std(0).reshape(8, -1)  # 4 blocks, 2 rows each
    spread = np.maximum(spread, 0.1 * spread.mean(1, keepdims=True))
    for name, rows in (("center", x[train].mean(0).reshape(8, -1)), ("scale", 1 / spread)):
        np.testing.assert_allclose(state[f"reader.{name}"], np.concatenate([rows, rows[-2:]]), rtol=1e-4, atol=1e-5)
    c, strength, *shares = state["blend.setting"].tolist()

    def oracle(z, y):
        """The logits of scikit-learn's two regressions, added, as a function of standardised rows."""
        logistic = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(z, y)
        ridge = Ridge(alpha=1 / strength).fit(z, np.eye(3)[y])
        return lambda z: torch.tensor(shares[0] * logistic.decision_function(z) + shares[1] * ridge.predict(z))

    probe = oracle(scaler.transform(x[train]), y[train])
    found = x @ state["probe.weight"].double().numpy().T + state["probe.bias"].double().numpy()
    expected = probe(scaler.transform(x))
    np.testing.assert_allclose(torch.tensor(found).softmax(1).numpy(), expected.softmax(1), atol=1e-4)
    hits = expected[held_out].argmax(1).numpy() == y[held_out]
    assert run.metrics["val_probe_top1"] == pytest.approx(100 * hits.mean())
    everything = StandardScaler().fit_transform(x)
    share = float(state["blend.share"][0])
    saved = (x @ run.adapter.probe.weight.double().numpy().T + run.adapter.probe.bias.double().numpy()) / share
    expected = oracle(everything, y)(everything)
    np.testing.assert_allclose(torch.tensor(saved).softmax(1).numpy(), expected.softmax(1), atol=1e-4)


def test_with_nothing_held_out_a_run_is_three_quarters_of_its_probe(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, out=tmp_path / "run", **OPTIONS | {"val_fraction": 0})
    trained = torch.load(run.run / "checkpoint.pt", weights_only=True)["adapter"]
    for part, share in (("probe", 0.75), ("classifier", 0.25)):
        for name, saved in getattr(run.adapter, part).state_dict().items():
            torch.testing.assert_close(saved, share * trained[f"{part}.{name}"])


def test_what_is_saved_gives_the_figures_of_the_last_epoch_and_both_recipes_are_told_apart(tiny_cache, tmp_path):
    both = lc.train(tiny_cache, out=tmp_path / "all", **OPTIONS)
    paper = lc.train(tiny_cache, out=tmp_path / "paper", recipe="paper", **OPTIONS)
    assert lc.evaluate_run(both.run)["loss"] == pytest.approx(both.metrics["val_loss"], rel=1e-5)
    assert "val_probe_top1" in both.metrics and "val_probe_top1" not in paper.metrics
    options = json.loads((paper.run / "config.json").read_text())["train"]
    assert (options["head"], options["weight_decay"], options["label_smoothing"]) == ("last", 1e-4, 0.0)
    assert paper.parameters["classifier"] < both.parameters["classifier"]
    assert paper.parameters["side"] == both.parameters["side"]
    with pytest.raises(lc.UserError, match="unknown recipe 'best': choose one of default, paper"):
        lc.train(tiny_cache, recipe="best", out=tmp_path / "none")
    with pytest.raises(lc.UserError, match="unknown head 'first': choose one of all, last"):
        lc.train(tiny_cache, head="first", out=tmp_path / "none")


def test_a_probe_that_would_take_long_is_left_out(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["losa_cache.train.all_layers"], "MOST_WORK", 1.0)
    run = lc.train(tiny_cache, out=tmp_path / "run", **OPTIONS)
    assert not run.adapter.probe.weight.any() and not run.adapter.probe.bias.any()
    assert "val_probe_top1" not in run.metrics
    assert lc.evaluate_run(run.run)["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)


def test_a_run_without_a_probe_reads_a_few_samples_before_its_first_step(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(all_layers, "MOST_WORK", 1.0)
    monkeypatch.setattr(all_layers, "STANDARDISED", 8)
    monkeypatch.setattr(all_layers, "NEIGHBOURS", 4)
    read, whole = [], BlockReader.read
    monkeypatch.setattr(BlockReader, "read", lambda self, rows, *rest: (read.append(rows), whole(self, rows, *rest)))
    before = []
    run = lc.train(
        tiny_cache, out=tmp_path / "run", residency="disk", progress=lambda _: before.append(len(read)), **OPTIONS
    )
    standardising = np.concatenate(read[: before[0] - 1])  # the last read is the first step's batch
    train = hold_out(tiny_cache.samples, tiny_cache.sample_ids, 0.3)[0]
    assert standardising.tolist() == [*train[:4], *train[-4:]]
    assert len(train) > 8
    assert run.adapter.reader is not None


@pytest.mark.usefixtures("no_figures")
def test_trials_of_a_sweep_end_where_each_ends_alone(tiny_cache, tmp_path):
    space = {"rank": [2, 3], "dropout": [0.0, 0.5]}
    base = lc.TrainConfig(epochs=2, batch_size=8, val_fraction=0.3)
    found = lc.sweep(tiny_cache, space=space, config=base, out=tmp_path / "sweep", device="cpu")
    for trial in found.record.trials:
        alone = lc.train(tiny_cache, config=base, out=tmp_path / f"{trial.number}", device="cpu", **trial.options)
        together = results(tmp_path / "sweep" / "trials" / f"{trial.number:04d}")
        assert results(alone.run)[-1]["val_loss"] == pytest.approx(together[-1]["val_loss"], rel=1e-4)


def test_a_run_of_an_earlier_version_had_a_logistic_regression_alone(tiny_cache, tmp_path):
    """What it wrote of its probe, C and share, still says how to fit it to the training samples alone."""
    made = lc.train(tiny_cache, out=tmp_path / "run", **OPTIONS)
    path = made.run / "adapter" / "config.json"
    config = without_seal(json.loads(path.read_text()))
    write_json(path, with_seal(config | {"probe": {"c": 0.01, "share": 0.5}}))
    train, held_out = hold_out(tiny_cache.samples, tiny_cache.sample_ids, 0.3)
    x, y, adapter = rows_of(tiny_cache), tiny_cache.labels, lc.load_adapter(made.run).adapter
    scaler = StandardScaler().fit(x[train])
    oracle = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(scaler.transform(x[train]), y[train])
    with torch.inference_mode(), lc.batches(tiny_cache, shuffle=False, device="cpu") as batches:
        own = torch.cat([adapter.both(batch.blocks)[0] for batch in batches])
    logits = own[held_out] + 0.5 * torch.from_numpy(oracle.decision_function(scaler.transform(x[held_out])))
    expected = float(F.cross_entropy(logits, torch.from_numpy(y[held_out])))
    assert lc.evaluate_run(made.run)["loss"] == pytest.approx(expected, rel=1e-4)
