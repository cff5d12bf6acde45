"""Fusion and the attentive probe wherever LoSA is: trained, stopped, resumed, read back, searched."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.tasks.classification import TASK
from losa_cache.train.config import TrainConfig
from losa_cache.train.loop import make_optimizer
from losa_cache.train.step import AdapterStep
from losa_cache.train.training_data import used_points
from tests.conftest import results, tiny_backbone, tiny_samples
from tests.sidenet.test_fast import tail_of
from tests.tape import TapeRecorder
from tests.train.test_graph import DEPTH, RATES, SIZES, TOKENS, WIDTH, batches
from tests.train.test_train import Stop, stop_after

SIDES = ["fusion", "attentive"]
OPTIONS = {"epochs": 4, "lr": 0.01, "batch_size": 5, "val_fraction": 0.3, "device": "cpu"}  # 16 samples: the last alone


def tensors(run):
    return load_file(run / "adapter/adapter.safetensors")


@pytest.mark.parametrize("side", SIDES)
def test_a_stopped_run_resumes_bit_identically_and_is_read_back(side, tiny_cache, tmp_path):
    whole = lc.train(tiny_cache, side=side, out=tmp_path / "whole", **OPTIONS)
    with pytest.raises(Stop):
        lc.train(tiny_cache, side=side, out=tmp_path / "stopped", report=stop_after(2), **OPTIONS)
    lc.resume(tmp_path / "stopped", device="cpu")
    ours, theirs = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")
    assert ours["side.steps"] == 4 * 4  # what was tried out for its memory is none of them
    config = json.loads((whole.run / "adapter/config.json").read_text())
    assert config["layers"] == ([1, 2, 3, 4] if side == "fusion" else [4])
    held_out = lc.evaluate_run(whole.run)
    assert held_out["loss"] == pytest.approx(whole.metrics["val_loss"], rel=1e-5)


@pytest.mark.parametrize("side", ["fusion", pytest.param("attentive", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_figures")
def test_trials_of_a_sweep_end_where_each_ends_alone(side, tiny_cache, tmp_path):
    base = TrainConfig(side=side, epochs=2, batch_size=5, val_fraction=0.3)
    space = {"lr": [0.01, 0.003], "weight_decay": [0.0, 0.1]}
    found = lc.sweep(tiny_cache, space=space, config=base, out=tmp_path / "sweep", device="cpu")
    assert len(found.record.trials) == 4
    for trial in found.record.trials[::3]:
        alone = lc.train(
            tiny_cache, config=replace(base, **trial.options), out=tmp_path / f"{trial.number}", device="cpu"
        )
        together = trial_path(tmp_path / "sweep", trial.number)
        for mine, their in zip(results(alone.run), results(together), strict=True):
            for name, value in mine.items():
                assert their[name] == pytest.approx(value, rel=1e-3, abs=1e-6)
        assert trial.parameters == alone.parameters["side"]


@pytest.mark.slow
def test_either_is_above_the_linear_probe_on_digits(digits, tmp_path):
    top1 = {}
    for side in ("linear", *SIDES):
        run = lc.train(str(digits["train"]), side=side, epochs=8, out=tmp_path / side, device="cpu").run
        top1[side] = lc.evaluate_run(run, cache=str(digits["test"]), device="cpu")["top1"]
    assert min(top1["fusion"], top1["attentive"]) > top1["linear"]


def test_each_reads_only_what_it_looks_at():
    layers = [2, 4, 6]
    assert used_points("block", layers, TrainConfig(side="attentive")) == ["block.6"]
    assert used_points("both", layers, TrainConfig(side="attentive", start="embedding")) == ["block.6"]
    assert used_points("block", layers, TrainConfig(side="fusion", start="embedding", layers=2)) == [
        "block.2",
        "block.6",
    ]
    assert used_points("mlp", layers, TrainConfig(side="fusion")) == ["mlp.2", "mlp.4", "mlp.6"]


@pytest.mark.parametrize("side", SIDES)
def test_branches_of_blocks_train_and_are_read_back(side, tmp_path):
    cache = extract(tiny_backbone(), tiny_samples(), precision="int8", tap="mlp", out=tmp_path / "mlp.zarr")
    run = lc.train(cache, side=side, out=tmp_path / "run", **OPTIONS)
    assert lc.evaluate_run(run.run)["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)


def trained_by_steps(side, *, recorded):
    own = Adapter(
        side=side, depth=DEPTH, tokens=TOKENS, width=WIDTH, rank=0, classes=3, tail=tail_of("avg", WIDTH, 1), seed=2
    )
    optimizer = make_optimizer(own, TrainConfig(side=side))

    def changed():
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return [*own.trained_state().values(), *moments, step.loss]

    recorder = TapeRecorder(changed) if recorded else None
    step = AdapterStep(
        own, optimizer, task=TASK, clip_grad=1.0, options={"label_smoothing": 0.0}, autocast=None, recorder=recorder
    )
    for batch, rate in zip(batches("values"), RATES, strict=True):
        step.rates.fill_(rate)
        step(batch)
    if recorder is not None:
        assert recorder.replayed == SIZES.count(7) - 1
    return own.trained_state()


@pytest.mark.parametrize("side", SIDES)
def test_every_replay_of_a_recorded_step_has_noise_and_statistics_of_its_own(side):
    replayed, eager = (trained_by_steps(side, recorded=recorded) for recorded in (True, False))
    assert replayed["side.steps"] == len(SIZES)
    assert all(torch.equal(replayed[name], eager[name]) for name in eager)
