"""Caches of branches and of the embedding: against the backbone, against their own sums, and through every check."""

import numpy as np
import pytest
import torch
import zarr
from timm.models.vision_transformer import ParallelScalingBlock

from losa_cache.cache.inspect import inspect_cache, list_caches
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.points import TAPS
from tests.conftest import tiny_backbone, tiny_samples
from tests.test_points import STORED

OPTIONS = {"precision": "float32", "batch_size": 23}


def plain_array(cache):
    return torch.from_numpy(zarr.open_array(str(cache.path / "activations" / cache.manifest.fields["tap"]))[:])


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("tap", TAPS)
def test_a_cache_holds_what_the_backbone_gives_at_its_points(tap, embedding, tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples()
    cache = extract(backbone, samples, tap=tap, embedding=embedding, layers=2, out=tmp_path / "c.zarr", **OPTIONS)
    names = ["embedding"] * embedding + STORED[tap]
    assert cache.manifest.points == names
    assert cache.manifest.layers == [2, 4]
    by_id = {name: i for i, name in enumerate(samples.ids)}
    transform = backbone.input.transform()
    pixels = torch.stack([transform(samples.load(by_id[name])) for name in cache.ids])
    stored = plain_array(cache)
    assert stored.shape == (23, len(names), 5, 32)
    assert torch.equal(stored, torch.stack(backbone.outputs(pixels, names, compute=torch.float32), dim=1))


def test_the_embedding_and_all_branches_sum_to_the_output_and_no_two_points_are_alike(tmp_path):
    cache = extract(
        tiny_backbone(init_values=0.3), tiny_samples(), tap="both", embedding=True, out=tmp_path / "c.zarr", **OPTIONS
    )
    stored = plain_array(cache)
    assert stored.shape[1] == 10
    torch.testing.assert_close(stored[:, :9].sum(dim=1), stored[:, 9], rtol=1e-4, atol=1e-4)
    sizes = stored.abs().mean(dim=(0, 2, 3))
    assert (sizes > 1e-3).all()
    assert len(set(sizes.tolist())) == 10


def test_every_tap_has_an_identity_of_its_own(tmp_path):
    chosen = [{"tap": tap, "embedding": embedding} for tap in TAPS for embedding in (False, True)]
    caches = [extract(tiny_backbone(), tiny_samples(3), **options) for options in chosen]
    assert len({cache.manifest.identity for cache in caches}) == len({cache.path for cache in caches}) == 8
    assert sorted(entry["points"] for entry in list_caches()) == [4, 5, 5, 5, 6, 6, 9, 10]


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_branches_are_verified_recomputed_and_repaired(precision, tmp_path):
    arguments = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    options = {"precision": precision, "tap": "both", "embedding": True, "layers": 2}
    cache = extract(**arguments, **options, out=tmp_path / "c.zarr", shard_bytes=8_000, batch_size=4)
    assert cache.layout.shards > 2
    whole = cache.shard_path(1).read_bytes()
    cache.shard_path(1).write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    found = verify_cache(cache.path, repair=True, recompute=23, **arguments)
    assert len(found["damaged"]["samples"]) == 1
    assert found["repaired"]
    assert found["intact"]
    assert len(found["recomputed"]["allowed"]) == 6
    assert inspect_cache(cache.path, full=True)["statistics"]["points"].keys() == {"embedding", *STORED["both"]}


def test_a_layer_of_other_scale_keeps_its_own_in_every_precision(tmp_path):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[1].mlp.fc2.bias[3] += 1000
    options = {"tap": "both", "layers": 2, "embedding": True, "batch_size": 23}
    exact = plain_array(extract(backbone, tiny_samples(), precision="float32", out=tmp_path / "e.zarr", **options))
    coded = extract(backbone, tiny_samples(), precision="int8", out=tmp_path / "i.zarr", **options)
    stored, encoding = plain_array(coded), coded.encoding()
    for at, point in enumerate(coded.manifest.points):
        decoded = encoding.decode_layer(at, stored[:, at].contiguous()).float()
        error = (decoded - exact[:, at]).norm() / exact[:, at].norm()
        assert error < 0.02, point


@pytest.mark.parametrize("option", [{"tap": "query"}, {"tap": ""}])
def test_an_unknown_tap_is_refused_before_anything_is_written(tmp_path, option):
    with pytest.raises(UserError, match="choose one of block, attention, mlp, both"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", **option)
    assert not list(tmp_path.iterdir())


def test_a_trunk_without_branches_is_refused_and_its_embedding_is_not(tmp_path):
    backbone = tiny_backbone(block_fn=ParallelScalingBlock)
    with pytest.raises(UserError, match="tap whole blocks"):
        extract(backbone, tiny_samples(), tap="mlp", out=tmp_path / "c.zarr")
    assert not list(tmp_path.iterdir())
    cache = extract(backbone, tiny_samples(), embedding=True, out=tmp_path / "c.zarr", **OPTIONS)
    assert np.isfinite(plain_array(cache).numpy()).all()
