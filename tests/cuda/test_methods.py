"""Methods inside the backbone on a GPU: steps as CUDA graphs are the very bits of eager ones."""

import pytest
import torch

import losa_cache as lc
from losa_cache.train import loop
from tests.conftest import tiny_backbone, tiny_samples

pytestmark = pytest.mark.cuda
METHODS = (
    "adapter",
    "adapter:pfeiffer",
    "adaptformer",
    "attention",
    "bitfit",
    "convpass",
    "fact:tt",
    "fact:tk",
    "full",
    "last:2",
    "lora",
    "mlp",
    "norm",
    "ssf",
    "vpt:shallow",
    "vpt:deep",
)


@pytest.fixture(autouse=True)
def sums_in_one_order(monkeypatch):
    """Have cuDNN take only convolutions whose gradients are the same bits every time: one by atomic additions differs
    from itself, eager or not.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def trained(method, precision, out, **options):
    if method == "lora":
        pytest.importorskip("peft")
    run = lc.train(
        backbone=tiny_backbone(embed_dim=64),
        dataset=tiny_samples(61),
        online=lc.OnlineConfig("tiny0", "tiny", precision=precision, workers=1),
        method=method,
        epochs=4,
        lr=1e-3,
        batch_size=8,
        val_fraction=0.2,
        device="cuda",
        out=out,
        **options,
    )
    return run.adapter.state_dict()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_replayed_and_ends_as_an_eager_one_bit_for_bit(method, precision, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="losa_cache.train.graph")
    graphed = trained(method, precision, tmp_path / "graphed")
    assert "The training step is replayed as a CUDA graph" in caplog.text
    monkeypatch.setattr(loop, "recorder_for", lambda device: None)
    eager = trained(method, precision, tmp_path / "eager")
    assert [name for name, value in graphed.items() if not torch.equal(value, eager[name])] == []


def test_blocks_that_are_computed_again_end_as_those_that_are_kept(tmp_path):
    kept = trained("full", "float32", tmp_path / "kept")
    again = trained("full", "float32", tmp_path / "again", grad_checkpointing=True)
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)
