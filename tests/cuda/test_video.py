"""Video on a GPU: LoSA of space and time beside the CPU's, and from clips to a trained adapter."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import losa_cache as lc
from losa_cache.data.clips import Clip
from losa_cache.data.samples import Samples
from losa_cache.sidenet.readout import First, Mean, Whole
from losa_cache.sidenet.video import GPU_STATES, VideoLoSA

pytestmark = pytest.mark.cuda
FRAMES, PLACES, PREFIX, WIDTH, RANK = 4, 9, 1, 32, 8
TOKENS = PREFIX + FRAMES * PLACES
READOUTS = [First(TOKENS, 1), Mean(TOKENS, PREFIX), Whole()]


def network(width=WIDTH, places=PLACES, **sizes):
    torch.manual_seed(0)
    own = {"depth": 5, "frames": FRAMES, "places": places, "prefix": PREFIX, "width": width, "rank": RANK}
    built = VideoLoSA(**own | sizes)
    for name, parameter in built.named_parameters():
        nn.init.normal_(parameter, mean=float(name.endswith("scale")), std=0.2)
    return built


def step(net, blocks, readout, dtype):
    """The rows that are asked for, and the gradients of a loss of them, in float64 on the CPU."""
    with torch.autocast(blocks[0].device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        rows = net(blocks, readout)
    rows.double().square().mean().backward()
    return [value.detach().double().cpu() for value in (rows, *(p.grad for p in net.parameters()))]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("dtype", "bound"), [(None, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_forward_and_backward_are_the_cpus(readout, dtype, bound, gpu):
    net = network()
    blocks = [torch.randn(3, TOKENS, WIDTH) for _ in range(5)]
    blocks = [block if dtype is None else block.to(dtype) for block in blocks]
    exact = step(copy.deepcopy(net).double(), [block.double() for block in blocks], readout, None)
    found = step(net.to(gpu), [block.to(gpu) for block in blocks], readout, dtype)
    assert (found[0] - exact[0]).norm() <= bound * exact[0].norm()
    whole = torch.cat([gradient.flatten() for gradient in exact[1:]]).norm()
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        assert (ours - theirs).norm() <= bound * whole


def test_states_made_in_parts_are_those_made_at_once(gpu):
    """A clip of ViViT-H in width and places: its states over time are cut where a GPU makes them at once."""
    clips, places, width, rank = 1, 256, 1280, 64
    assert clips * rank * places * width < GPU_STATES < 6 * clips * rank * places * width
    net = network(depth=2, frames=16, places=places, width=width, rank=rank, prefix=0)
    tokens = 16 * places
    blocks = [torch.randn(6, tokens, width) for _ in range(2)]
    whole = step(copy.deepcopy(net).to(gpu), [block.to(gpu) for block in blocks], Mean(tokens, 0), None)
    rows = []
    for clip in range(6):
        with torch.no_grad():
            rows.append(net.to(gpu)([block[clip : clip + 1].to(gpu) for block in blocks], Mean(tokens, 0)).cpu())
    torch.testing.assert_close(whole[0].float(), torch.cat(rows), rtol=1e-4, atol=1e-5)


def clips(count=24):
    """Videos of 12 frames, in memory; the classes differ in brightness."""
    generator = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % 2
    frames = [generator.integers(0, 128, (12, 16, 16, 3), dtype=np.uint8) + np.uint8(120 * label) for label in labels]

    def clip(index, wanted):
        return (Image.fromarray(frames[index][at]) for at in wanted.indices(12))

    ids = [f"video-{number:02d}" for number in range(count)]
    return Samples("clips", "train", ("dark", "bright"), ids, labels, lambda i: next(clip(i, Clip())), "sha256:0", clip)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_clips_to_a_trained_adapter_cached_and_online(precision, tmp_path, gpu):
    backbone = lc.load_backbone("vivit_digits")
    out = tmp_path / "clips.zarr"
    cache = lc.extract(backbone, clips(), clips=2, precision=precision, device="cuda", out=out)
    options = {"rank": 4, "epochs": 6, "lr": 0.02, "batch_size": 4, "val_fraction": 0.3, "device": "cuda"}
    cached = lc.train(cache, out=tmp_path / "cached", **options)
    config = lc.OnlineConfig("vivit_digits", "clips", precision=precision, clips=2)
    fresh = lc.train(online=config, backbone=backbone, dataset=clips(), out=tmp_path / "online", **options)
    assert isinstance(cached.adapter.side, VideoLoSA)
    for run in (cached, fresh):
        assert run.metrics["val_top1"] > 90
    assert fresh.metrics["train_loss"] == pytest.approx(cached.metrics["train_loss"], rel=0.1, abs=0.02)
