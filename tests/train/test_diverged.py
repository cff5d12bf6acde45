"""A last step that goes too far: the loss before it was a number, and nothing of it is kept, chosen or believed."""

import json
import re

import pytest
import torch

import losa_cache as lc
from losa_cache.sidenet.adapter_file import load_adapter_config, load_whole, save_adapter
from losa_cache.train.config import TrainConfig
from losa_cache.train.diverged import DivergedError, require_weights
from tests.conftest import tiny_backbone, tiny_samples

ONE_STEP = {"epochs": 1, "batch_size": 64, "warmup": 0.0, "device": "cpu"}


@pytest.mark.parametrize(
    ("method", "share", "rate", "what"),
    [
        ("full", 0.3, 1e6, "the loss of held-out samples is nan"),
        ("full", 0, 1e6, "its predictions are infinite or not numbers"),
        ("full", 0.3, 1e38, "epoch 1 leaves weights that are infinite"),
        ("linear", 0.3, 1e37, "the loss of held-out samples is inf"),
    ],
)
def test_a_last_step_that_goes_too_far_leaves_no_adapter(method, share, rate, what, tmp_path):
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples(), "out": tmp_path / "run", "head": "last"}
    online = lc.OnlineConfig("tiny0", "tiny", precision="float32", workers=1)
    with pytest.raises(
        DivergedError, match=f"{what}.*: lower --lr .it is {re.escape(str(rate))}. or raise --precision"
    ):
        lc.train(online=online, method=method, lr=rate, val_fraction=share, **given, **ONE_STEP)
    assert not (tmp_path / "run/adapter").exists()


def test_a_side_network_that_goes_too_far_leaves_no_adapter(tiny_cache, tmp_path):
    with pytest.raises(DivergedError, match="lower --lr"):
        lc.train(tiny_cache, head="last", rank=2, lr=1e36, val_fraction=0, out=tmp_path / "run", **ONE_STEP)
    assert not (tmp_path / "run/adapter").exists()


def test_weights_that_are_none_are_neither_trained_on_nor_saved(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, side="linear", head="last", out=tmp_path / "run", **ONE_STEP)
    adapter, config = run.adapter, load_adapter_config(run.run)
    with torch.no_grad():
        adapter.classifier.bias[1] = -torch.inf
    with pytest.raises(DivergedError, match="epoch 3 leaves weights"):
        require_weights(adapter, TrainConfig(), epoch=2)
    before = (run.run / "adapter/config.json").read_text()
    with pytest.raises(lc.UserError, match=r"classifier\.bias has values that are infinite .* is not saved"):
        save_adapter(run.run, adapter, config)
    assert (run.run / "adapter/config.json").read_text() == before


def test_outputs_that_are_none_are_no_predictions(tiny_cache, tmp_path):
    """An adapter of an earlier version, which kept such a training, has them."""
    run = lc.train(tiny_cache, side="linear", head="last", val_fraction=0.3, out=tmp_path / "run", **ONE_STEP).run
    config = {name: own for name, own in load_adapter_config(run).items() if name not in ("seal", "sha256")}
    adapter, _ = load_whole(run, config)
    with torch.no_grad():
        adapter.classifier.weight.copy_(3e38 * adapter.classifier.weight.sign())
    save_adapter(run, adapter, config)
    with pytest.raises(DivergedError, match="on .*tiny.* is nan, so its training has diverged: .* a lower --lr"):
        lc.evaluate_run(run, device="cpu")
    assert not (run / "eval.json").exists()
    assert "metrics" not in json.loads((run / "adapter/config.json").read_text())
