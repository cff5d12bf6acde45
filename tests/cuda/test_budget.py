"""A backbone that passes through a GPU in groups of blocks: the same values and bytes, within its budget."""

import pytest
import torch

from losa_cache.backbone import load_backbone
from losa_cache.extract.extract import extract
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents

pytestmark = pytest.mark.cuda
HALVES = (torch.float32, torch.bfloat16, torch.float16)


def least(backbone, batch, compute):
    """Bytes for one block at work and one on its way."""
    sizes = backbone.to("cpu", budget=10**12).streamed.sizes(compute)
    return sizes.least + batch * sizes.image


@pytest.mark.parametrize("compute", HALVES)
def test_many_batches_through_many_groups_are_what_the_whole_backbone_gives(compute, gpu):
    """Weights come on a stream of their own while a group is at work; a batch waits in pinned memory meanwhile."""
    made = {"patch_size": 1, "embed_dim": 256, "depth": 8, "num_heads": 4}
    points = ["block.1", "attention.4", "block.5", "mlp.8", "block.8"]
    seeded = torch.Generator().manual_seed(0)
    sizes = (16, 16, 16, 5)
    pixels = [torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=seeded).pin_memory() for n in sizes]
    whole = tiny_backbone(**made).to(gpu)
    wanted = [[value.cpu() for value in whole.outputs(batch, points, compute=compute)] for batch in pixels]
    ours = tiny_backbone(**made)
    ours.to(gpu, budget=least(ours, 16, compute))
    assert len(ours.groups(16, compute)) == 8
    for _ in range(3):  # the next run finds weights that the one before sent for
        found: list[dict] = [{} for _ in pixels]
        sinks = [lambda at, value, own=own: own.update({at: value.clone()}) for own in found]
        ours.run_all(pixels, points, sinks, compute=compute)
        for own, theirs in zip(found, wanted, strict=True):
            for at, value in enumerate(theirs):
                assert torch.equal(own[at].cpu(), value), (points[at], compute)


def test_it_takes_no_more_of_the_device_than_it_was_given(gpu):
    with gpu:
        backbone = load_backbone("vit_b", weights="random")
    batch, compute = 4, torch.bfloat16
    square = torch.ones(64, 64, device=gpu, dtype=compute)
    torch.nn.functional.linear(square, square, square[0])  # the workspace of products stays
    budget = least(backbone, batch, compute)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    backbone.to(gpu, budget=budget)
    pixels = torch.zeros(batch, 3, 224, 224, dtype=torch.uint8)
    backbone.run_all([pixels] * 3, ["block.12"], [lambda at, value: None] * 3, compute=compute)
    assert budget < backbone.weight_bytes / 4
    assert torch.cuda.max_memory_allocated() - before <= budget


# What is predicted is fitted where the points are collected, with a budget on the host: it differs in its last bits.
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "int8"])
def test_shards_receipts_and_manifest_are_those_without_a_budget(precision, tmp_path, gpu):
    options = {"precision": precision, "shard_bytes": 13_000, "batch_size": 4, "device": "cuda"}
    plain = extract(tiny_backbone(embed_dim=64), tiny_samples(), out=tmp_path / "a.zarr", **options)
    backbone = tiny_backbone(embed_dim=64)
    budget = least(backbone, 23, backbone.to(gpu).compute_dtype(precision))  # an encoding is fitted to all 23 images
    ours = extract(backbone, tiny_samples(), out=tmp_path / "b.zarr", max_device_memory=budget, **options)
    assert backbone.streamed is not None
    assert len(backbone.groups(23, backbone.compute_dtype(precision))) == 4
    assert contents(ours.path) == contents(plain.path)
