"""Methods through the loop: trained, evaluated, rebuilt from their files."""

import pytest
import torch

import losa_cache as lc
from losa_cache.tuned.rebuild import trunk_of
from tests.conftest import tiny_backbone, tiny_samples

REGISTERS, AVERAGE = {"reg_tokens": 3, "init_values": 0.1}, {"class_token": False, "global_pool": "avg"}
METHODS = {
    "adapter:pfeiffer": REGISTERS,
    "adaptformer": AVERAGE,
    "convpass": REGISTERS,
    "fact:tk": AVERAGE,
    "lora:qkv+mlp": REGISTERS,
    "ssf": AVERAGE,
    "vpt:shallow": REGISTERS,
    "vpt:deep": AVERAGE,
}


QUICK = ("lora:qkv+mlp", "vpt:deep")  # PEFT's, and more tokens


@pytest.mark.parametrize(
    "method", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in QUICK)]
)
def test_a_run_is_evaluated_and_rebuilt_as_it_was_trained(method, tmp_path):
    if method.startswith("lora"):
        pytest.importorskip("peft")
    backbone, samples = tiny_backbone(**METHODS[method]), tiny_samples()
    run = lc.train(
        backbone=backbone,
        dataset=samples,
        online=lc.OnlineConfig("tiny0", "tiny", precision="float32", workers=1),
        method=method,
        rank=None if method == "ssf" else 2,
        epochs=2,
        lr=1e-2,
        batch_size=8,
        val_fraction=0.3,
        device="cpu",
        grad_checkpointing=True,
        out=tmp_path / "run",
    )
    again = lc.evaluate_run(run.run, backbone=backbone, dataset=samples, device="cpu")
    assert again["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)
    model = lc.load_adapter(run.run, device="cpu")
    changed = trunk_of(backbone, model)
    pixels = torch.rand(4, *backbone.input.shape)
    with torch.no_grad():
        found = changed.outputs(pixels, model.points, compute=torch.float32)
        torch.testing.assert_close(model(found), run.adapter.eval()([pixels]), rtol=1e-4, atol=1e-5)
        plain = backbone.outputs(pixels, model.points, compute=torch.float32)
        assert not torch.allclose(plain[0], found[0], atol=1e-4)
