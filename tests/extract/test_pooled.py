"""Pooled caches: what they hold, against float64 and timm's own head; and everything that a full cache can do."""

import numpy as np
import pytest
import torch

from losa_cache.cache.inspect import inspect_cache, list_caches
from losa_cache.cache.manifest import Manifest
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.plan_extraction import plan_extraction
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.extract.test_taps import plain_array
from tests.test_points import STORED

OPTIONS = {"tokens": "pooled", "precision": "float32", "batch_size": 23}
TRUNKS = {
    "class token": {},
    "registers": {"reg_tokens": 2},
    "norm before the mean": {"global_pool": "avg", "fc_norm": False},
    "norm behind the mean": {"global_pool": "avg", "class_token": False},
    "attention": {"global_pool": "map", "class_token": False},
}


def pooled_by_hand(block, prefix, classes):
    """Each token of ``(batch, n, d)`` less its mean, over its deviation; the class token, and the mean of patches."""
    block = block.double().numpy()
    normed = (block - block.mean(-1, keepdims=True)) / np.sqrt(block.var(-1, keepdims=True) + 1e-6)
    return np.stack([*([normed[:, 0]] if classes else []), normed[:, prefix:].mean(1)], axis=1)


@pytest.mark.parametrize("kind", TRUNKS)
def test_a_pooled_cache_holds_two_rows_of_each_point_and_the_features_of_the_trunks_own_head(kind, tmp_path):
    backbone, samples = tiny_backbone(**TRUNKS[kind]), tiny_samples()
    cache = extract(backbone, samples, out=tmp_path / "c.zarr", **OPTIONS)
    points = [f"block.{layer}" for layer in (1, 2, 3, 4)]
    assert cache.manifest.points == [*points, "tail"]
    by_id = {name: i for i, name in enumerate(samples.ids)}
    transform = backbone.input.transform()
    pixels = torch.stack([transform(samples.load(by_id[name])) for name in cache.ids])
    blocks = backbone.outputs(pixels, points, compute=torch.float32)
    stored = plain_array(cache)
    classes = backbone.prefix_tokens > 0
    for at, block in enumerate(blocks):
        expected = pooled_by_hand(block, backbone.prefix_tokens, classes)
        np.testing.assert_allclose(stored[:, at], expected, atol=2e-6)
    with torch.inference_mode():
        features = backbone.model(backbone.input.normalise(pixels))
    assert stored.shape == (23, 5, 1 + classes, 32)
    for row in range(1 + classes):
        torch.testing.assert_close(stored[:, 4, row], features, rtol=1e-5, atol=1e-5)


def test_branches_and_the_embedding_are_pooled_in_their_order(tmp_path):
    backbone = tiny_backbone()
    chosen = {"tap": "both", "embedding": True, "layers": 2, **OPTIONS}
    cache = extract(backbone, tiny_samples(), out=tmp_path / "p.zarr", **chosen)
    names = ["embedding", *STORED["both"]]
    assert cache.manifest.points == [*names, "tail"]
    full = extract(backbone, tiny_samples(), out=tmp_path / "f.zarr", **chosen | {"tokens": "all"})
    assert full.manifest.points == names
    assert full.ids == cache.ids
    tokens, rows = plain_array(full), plain_array(cache)
    for at in range(len(names)):
        np.testing.assert_allclose(rows[:, at], pooled_by_hand(tokens[:, at], 1, classes=True), atol=2e-6)


@pytest.mark.parametrize("chosen", [{"precision": "bfloat16", "views": 2, "augment": "crop"}, {"precision": "int8"}])
def test_pooled_rows_are_resumed_verified_recomputed_and_repaired(chosen, tmp_path):
    arguments = {"backbone": tiny_backbone(), "dataset": tiny_samples(bad=(2,))}
    options = {"tokens": "pooled", "batch_size": 4, "shard_bytes": 2_500, "on_error": "skip", **chosen}
    options |= {"out": tmp_path / "c.zarr"}
    cache = extract(**arguments, **options)
    assert cache.layout.shards > 2
    assert cache.layout.sample_chunks == 1
    before = contents(cache.path)
    (cache.receipts / "000001.json").unlink()
    assert contents(extract(**arguments, **options).path) == before
    whole = cache.shard_path(0).read_bytes()
    cache.shard_path(0).write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    found = verify_cache(cache.path, repair=True, recompute=40, **arguments)
    assert (len(found["damaged"]["samples"]), found["repaired"], found["intact"]) == (1, True, True)
    assert len(found["recomputed"]["allowed"]) == 5
    assert contents(cache.path) == before


def test_a_precision_of_pooled_rows_costs_no_more_than_it_says(tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples()
    exact = plain_array(extract(backbone, samples, out=tmp_path / "e.zarr", **OPTIONS))
    coded = extract(backbone, samples, out=tmp_path / "i.zarr", **OPTIONS | {"precision": "int8"})
    encoding, stored = coded.encoding(), plain_array(coded)
    for at, decoded in enumerate(encoding.decode([own.contiguous() for own in stored.unbind(1)])):
        assert (decoded.float() - exact[:, at]).norm() < 0.01 * exact[:, at].norm()


@pytest.mark.parametrize("precision", ["int4", "predict:1", "predict:20%"])
def test_coarser_precisions_and_unknown_tokens_are_refused_before_anything_is_written(precision, tmp_path):
    with pytest.raises(UserError, match=f"precision is {precision!r}, but pooled rows .* float32, .*, int8"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", tokens="pooled", precision=precision)
    with pytest.raises(UserError, match="unknown tokens 'some': choose one of all, pooled"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", tokens="some")
    assert not (tmp_path / "c.zarr").exists()


def test_full_and_pooled_caches_have_identities_and_names_of_their_own_and_say_which_they_are():
    full, pooled = (extract(tiny_backbone(), tiny_samples(), tokens=tokens) for tokens in ("all", "pooled"))
    assert "tokens" not in full.manifest.fields
    assert pooled.manifest.fields == full.manifest.fields | {"tokens": "pooled"}
    assert full.manifest.identity != pooled.manifest.identity
    assert "-pooled-" in pooled.path.name
    assert [entry["tokens"] for entry in list_caches()] == ["pooled", "all"]
    described = inspect_cache(pooled.path)
    assert described["tokens"] == {"stored": "pooled", "total": 2, "prefix": 1, "grid": [1, 1]}
    assert list(described["statistics"]["points"])[-1] == "tail"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("tail", {"norm": {"type": "layernorm", "eps": 1e-6, "affine": False, "bias": False}}),
        ("tail", {"pool": "avg"}),
        ("tokens", {"total": 3, "grid": [1, 2]}),
    ],
)
def test_a_pooled_cache_that_declares_what_pooled_rows_are_not_is_refused(part, change):
    attributes = extract(tiny_backbone(), tiny_samples(3), tokens="pooled").manifest.to_attributes()
    assert Manifest.from_attributes(attributes, "c").holds == "pooled"
    attributes["losa_cache"][part] |= change
    with pytest.raises(UserError, match="attributes of 'c' are not as protocol 4 says .*pooled rows"):
        Manifest.from_attributes(attributes, "c")


def test_plan_foretells_a_pooled_cache_and_offers_only_what_can_be(tmp_path):
    arguments = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    planned = plan_extraction(**arguments, tokens="pooled")
    made = extract(**arguments, tokens="pooled")
    assert planned["bytes"] == sum(made.shard_sizes().values())
    assert planned["out"] == str(made.path)
    assert (planned["tokens"], len(planned["points"])) == (2, 5)
    assert {other["precision"] for other in planned["alternatives"]} == {"float32", "float16", "int8"}
