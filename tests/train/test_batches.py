"""``lc.batches`` against a plain read of the Zarr arrays, and against what ``train`` asks for."""

import pytest
import torch
import zarr

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.train.cached import CachedSource
from tests.conftest import tiny_backbone, tiny_samples

CUT = {"shard_bytes": 13_000, "device": "cpu"}


def plain(cache, dtype):
    """Read all block outputs with zarr alone: ``(rows, layers, tokens, width)``."""
    stored = torch.from_numpy(zarr.open_array(str(cache.path / "activations" / "block"), mode="r")[:])
    return stored.view(dtype)


@pytest.mark.parametrize(
    ("precision", "dtype", "residency"),
    [("float32", torch.float32, "disk"), ("bfloat16", torch.bfloat16, "memory"), ("float16", torch.float16, "auto")],
)
def test_batches_hold_what_the_arrays_do_and_each_sample_once_an_epoch(precision, dtype, residency, tmp_path):
    cache = extract(
        tiny_backbone(), tiny_samples(bad=(4,)), precision=precision, out=tmp_path / "c", on_error="skip", **CUT
    )
    values, labels = plain(cache, dtype), zarr.open_array(str(cache.path / "labels"), mode="r")[:]
    row = {sample_id: row for row, sample_id in enumerate(cache.ids)}
    orders = []
    with lc.batches(cache.path, batch_size=6, seed=5, residency=residency, device="cpu") as batches:
        assert batches.points == ["block.1", "block.2", "block.3", "block.4"]
        assert len(batches) == 4
        for _ in range(2):
            order = []
            for batch in batches:
                rows = [row[sample_id] for sample_id in batch.ids]
                assert [block.dtype for block in batch.blocks] == [dtype] * 4
                assert torch.equal(torch.stack(batch.blocks, 1), values[rows])
                assert batch.labels.tolist() == labels[rows].tolist()
                order += batch.ids
            orders.append(order)
    there = [sample_id for sample_id, label in zip(cache.ids, labels, strict=True) if label >= 0]
    assert len(there) == 22
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(there)
    assert orders[0] != orders[1]


def test_the_order_is_that_of_train(tiny_cache, tmp_path, monkeypatch):
    trained, validated = [], set()
    read = CachedSource.batches

    def noting(self, requests):
        for request, batch in zip(requests, read(self, requests), strict=True):
            if request.epoch is None:
                validated.update(batch.ids)
            else:
                trained.append(batch.ids)
            yield batch

    monkeypatch.setattr(CachedSource, "batches", noting)
    options = {"batch_size": 5, "val_fraction": 0.3, "seed": 3, "device": "cpu"}
    lc.train(tiny_cache, side="linear", epochs=3, out=tmp_path / "run", **options)
    expected = list(trained)
    with lc.batches(tiny_cache, **options) as batches:
        assert [batch.ids for _ in range(3) for batch in batches] == expected
        held_out = [sample_id for batch in batches.held_out() for sample_id in batch.ids]
        assert [batch.ids for batch in batches.epoch(1)] == expected[len(batches) : 2 * len(batches)]
        assert [batch.ids for batch in batches] == expected[2 * len(batches) :]
    assert set(held_out) == validated
    assert len(held_out) == len(validated) == 7
    assert held_out == [sample_id for sample_id in tiny_cache.ids if sample_id in validated]


def test_an_epoch_shows_one_view_and_as_many_epochs_all(tmp_path):
    cache = extract(
        tiny_backbone(), tiny_samples(7), precision="float32", views=3, augment="crop", out=tmp_path / "c", **CUT
    )
    values, seen = plain(cache, torch.float32)[:, -1], []
    with lc.batches(cache, batch_size=7, layers=1, device="cpu") as batches:
        for _ in range(3):
            (batch,) = batches
            (block,) = batch.blocks
            rows = [int((values == own).flatten(1).all(1).nonzero()[0]) for own in block]
            assert [cache.ids[row] for row in rows] == batch.ids
            seen += rows
    with lc.batches(cache, shuffle=False, points=["block.4"], device="cpu") as batches:
        (batch,) = batches
        assert torch.equal(batch.blocks[0], values[::3])  # the plain ones
    assert sorted(seen) == list(range(21))


def test_points_and_ids_are_those_asked_for(tiny_cache):
    values = plain(tiny_cache, torch.float32)
    wanted = ["image-017", "image-003", "image-010"]
    rows = sorted(tiny_cache.ids.index(sample_id) for sample_id in wanted)
    with lc.batches(tiny_cache, points=["block.3", "block.1"], ids=wanted, shuffle=False, device="cpu") as batches:
        (batch,) = batches
        assert batch.ids == [tiny_cache.ids[row] for row in rows]
        assert all(torch.equal(block, values[rows, at]) for block, at in zip(batch.blocks, (2, 0), strict=True))
    with lc.batches(tiny_cache, layers=2, device="cpu") as batches:
        assert batches.points == ["block.2", "block.4"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch-size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"layers": "1,2"}, "lack the last block, 4"),
        ({"layers": 9}, "9 layers cannot be chosen"),
        ({"points": ["block.9"]}, "holds no point 'block.9'; nearest: block"),
        ({"points": ["embedding"]}, "holds no point 'embedding'"),
        ({"points": []}, "name at least one"),
        ({"points": ["block.1", "block.1"]}, "each once"),
        ({"points": ["block.1"], "layers": 2}, "leave one of them out"),
        ({"ids": ["image-001", "nobody"]}, r"no sample 'nobody' \(1 of 2"),
        ({"ids": []}, "no samples to read"),
        ({"val_fraction": 1.0}, "val-fraction is 1.0"),
        ({"ids": ["image-001"], "val_fraction": 0.5}, "leaves none to train on or none to validate on"),
        ({"residency": "moon"}, "unknown residency 'moon'"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
    ],
)
def test_what_cannot_work_is_a_sentence_before_anything_is_read(options, said, tiny_cache, monkeypatch):
    monkeypatch.setattr(CachedSource, "__init__", lambda *a, **k: pytest.fail("it was opened"))
    with pytest.raises(lc.UserError, match=said):
        lc.batches(tiny_cache, **{"device": "cpu"} | options)


def test_passes_do_not_overlap_and_end_with_the_batches(tiny_cache):
    with pytest.raises(lc.UserError, match="there is no cache at"):
        lc.batches("nowhere.zarr")
    batches = lc.batches(tiny_cache, batch_size=5, val_fraction=0.2, device="cpu")
    first = next(iter(batches))  # what is left of this epoch is left
    second = iter(batches)
    assert next(second).ids != first.ids
    assert sum(len(batch.ids) for batch in batches.held_out()) == 5
    with pytest.raises(lc.UserError, match="ended when another one began"):
        next(second)
    assert sum(len(batch.ids) for batch in batches.epoch(0)) == 18
    third = iter(batches)
    batches.close()
    batches.close()
    with pytest.raises(lc.UserError, match="or they were closed"):
        next(third)
    with pytest.raises(lc.UserError, match=r"closed: open them again"):
        iter(batches)
    with lc.batches(tiny_cache, device="cpu") as batches, pytest.raises(lc.UserError, match="no samples are held out"):
        batches.held_out()
