"""Statistics against numpy over the whole array, read by zarr itself."""

import json

import numpy as np
import pytest
import torch
import zarr

from losa_cache.cache.inspect import inspect_cache, list_caches
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from tests.conftest import losa_cache, tiny_backbone, tiny_samples


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_statistics_are_those_of_all_values(precision, tmp_path):
    options = {"precision": precision, "shard_bytes": 7_000, "on_error": "skip"}
    cache = extract(tiny_backbone(), tiny_samples(bad=(3,)), out=tmp_path / "c.zarr", **options)
    stored = torch.from_numpy(zarr.open_array(str(cache.path / "activations" / "block"))[:][cache.labels >= 0])
    stored, encoding = stored.view(cache.precision.stored_dtype), cache.encoding()
    threads = torch.get_num_threads()
    found = inspect_cache(cache.path, full=True)["statistics"]
    assert torch.get_num_threads() == threads
    assert found["rows"] == 22
    for at, point in enumerate(cache.manifest.points):
        values = encoding.decode_layer(at, stored[:, at]).double().numpy()
        ours = found["points"][point]
        assert ours["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-7)
        assert ours["std"] == pytest.approx(values.std(), rel=1e-5)
        assert ours["largest"] == pytest.approx(np.abs(values).max(), rel=1e-5)
        assert ours["non_finite"] == 0
    assert inspect_cache(cache.path)["statistics"]["rows"] < 22


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[3].mlp.fc2.bias[:2] = torch.tensor([float("nan"), float("inf")])
    cache = extract(backbone, tiny_samples(), precision="float32", out=tmp_path / "c.zarr")
    points = inspect_cache(cache.path, full=True)["statistics"]["points"]
    assert [point["non_finite"] for point in points.values()] == [0, 0, 0, 23 * 5 * 2]
    assert all(np.isfinite(point["std"]) for point in points.values())


def test_a_damaged_shard_is_one_sentence(tiny_cache):
    path = tiny_cache.shard_path(0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged \(the index of shard .*verify --repair"):
        inspect_cache(tiny_cache.path)


def test_list_shows_complete_and_incomplete_caches_and_those_that_cannot_be_opened(tmp_path, monkeypatch):
    assert "no caches yet" in losa_cache("list").stdout
    one = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "elsewhere.zarr")
    other = extract(tiny_backbone(), tiny_samples(split="test"))
    root = other.path / "zarr.json"
    root.write_text(root.read_text().replace('"complete": true', '"complete": false'))
    extract(tiny_backbone(), tiny_samples(7)).path.joinpath("zarr.json").write_text("{")
    found = {entry["path"]: entry for entry in list_caches()}
    assert found[str(one.path)] == {
        "path": str(one.path),
        "backbone": "tiny0",
        "dataset": "tiny",
        "split": "train",
        "tap": "block",
        "tokens": "all",
        "points": 4,
        "precision": "bfloat16",
        "rows": 23,
        "bytes": one.stored_bytes,
        "complete": True,
    }
    assert found[str(other.path)]["complete"] is False
    assert sum("error" in entry for entry in found.values()) == 1
    assert json.loads(losa_cache("list", "--json").stdout) == list(found.values())
    plain = losa_cache("list").stdout
    assert str(one.path) in plain
    assert "incomplete" in plain
    assert "cannot be opened" in plain
