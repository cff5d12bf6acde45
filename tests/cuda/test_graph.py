"""Training steps as CUDA graphs: the very bits of eager steps."""

import pytest
import torch

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.train import loop
from losa_cache.train.graph import recorder_for
from tests.conftest import tiny_backbone, tiny_samples

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "predict:2"])
@pytest.mark.parametrize("residency", ["device", "memory", "disk"])
def test_a_run_ends_as_an_eager_one_bit_for_bit(residency, precision, tmp_path, monkeypatch, caplog):
    backbone = tiny_backbone(embed_dim=64)
    cache = extract(backbone, tiny_samples(61), precision=precision, out=tmp_path / "c.zarr", device="cuda")
    config = lc.TrainConfig(rank=4, epochs=4, lr=0.01, batch_size=8, val_fraction=0)

    def train(name):
        return lc.train(cache, config=config, residency=residency, out=tmp_path / name).adapter.state_dict()

    caplog.set_level("INFO", logger="losa_cache.train.graph")
    graphed = train("graphed")
    assert "replayed as a CUDA graph" in caplog.text
    monkeypatch.setattr(loop, "recorder_for", lambda device: None)
    eager = train("eager")
    assert all(torch.equal(value, eager[name]) for name, value in graphed.items())


def test_a_step_that_cannot_be_captured_is_taken_eagerly_and_leaves_the_device_usable(gpu):
    from losa_cache.train.batch import Batch
    from losa_cache.train.graph import Replayed

    total = torch.zeros((), device=gpu)

    def work(blocks, labels):
        total.add_(blocks[0].sum())
        total.item()  # waits for the device, which a capture refuses

    replayed = Replayed(work, "the work", recorder_for(gpu))
    ones = [torch.ones(4, 2, 2, device=gpu)]
    for _ in range(4):
        replayed(Batch(list(ones), torch.zeros(4, dtype=torch.int64, device=gpu), [], fixed=True))
    assert total.item() == 4 * 16
    assert replayed.why_eager
    torch.rand(3, device=gpu)  # the generator is no longer that of a capture
