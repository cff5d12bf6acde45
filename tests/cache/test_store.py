"""The store as others see it: three Zarr readers that know nothing of us, and every byte that could be wrong."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
import zarr

from losa_cache.backbone import Backbone
from losa_cache.cache import compression
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.store import latest_training_cache, open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.points import tapped_points
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples


def read_all(cache, layers):
    rows = cache.samples
    shape = (len(rows), cache.layout.tokens, cache.layout.columns)
    targets = [torch.empty(shape, dtype=cache.precision.stored_dtype) for _ in layers]
    reader = BlockReader(cache, tapped_points("block", layers))
    reader.read(rows, targets)
    reader.close()
    return torch.stack(targets, dim=1)


def by_zarr(path):
    return zarr.open_array(str(path / "activations" / "block"), mode="r")[:]


def by_zarrs(path):
    import zarrs  # noqa: F401  # registers its pipeline

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}):
        return by_zarr(path)


def by_tensorstore(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "activations" / "block")}}
    return tensorstore.open(spec, read=True, open=True).result().read().result()


READERS = (by_zarr, by_zarrs, by_tensorstore)


def test_zeros_are_written_not_left_out(tmp_path):
    """A class 0 alone, a bias of zeros: Zarr would take their chunks for missing ones."""
    backbone, samples = tiny_backbone(), tiny_samples()
    torch.nn.init.zeros_(backbone.model.norm.bias)
    backbone = Backbone(backbone.model, name="zeros", random=True, input=backbone.input)
    samples = replace(samples, labels=np.zeros_like(samples.labels))
    path = extract(backbone, samples, out=tmp_path / "c.zarr").path
    cache = open_cache(path)
    assert not cache.labels.any()
    assert not cache.tail_tensors()["norm.bias"].any()
    for chunk in ("labels/c/0", "tail/norm.bias/c/0"):
        assert (path / chunk).is_file()


@pytest.mark.parametrize("worth", [0, 2], ids=["plain", "compressed"])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_other_zarr_readers_read_what_the_backbone_gave(precision, worth, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "WORTH_BYTES", 0)
    monkeypatch.setattr(compression, "WORTH_RATIO", worth)
    backbone, samples = tiny_backbone(), tiny_samples()
    cache = extract(backbone, samples, precision=precision, out=tmp_path / "c.zarr", shard_bytes=7_000, batch_size=4)
    assert cache.layout.shards > 3
    assert cache.layout.compressed == bool(worth)
    compute = backbone.compute_dtype(precision)
    transform = backbone.input.transform()
    by_id = {name: i for i, name in enumerate(samples.ids)}
    pixels = torch.stack([transform(samples.load(by_id[name])) for name in cache.ids])
    direct = torch.stack(
        [
            b
            for part in pixels.split(4)
            for b in torch.stack(backbone.outputs(part, cache.manifest.points, compute=compute), dim=1)
        ]
    )
    expected = direct.to(cache.precision.dtype).float().numpy()
    for reader in READERS:
        theirs = np.asarray(reader(cache.path))
        if precision == "bfloat16":
            theirs = theirs.view(ml_dtypes.bfloat16)
        assert np.array_equal(theirs.astype(np.float32), expected), reader
    assert torch.equal(read_all(cache, [1, 2, 3, 4]).float(), torch.from_numpy(expected))


@pytest.mark.parametrize("worth", [0, 2], ids=["plain", "compressed"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_other_zarr_readers_read_the_bytes_that_we_decode(precision, worth, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "WORTH_BYTES", 0)
    monkeypatch.setattr(compression, "WORTH_RATIO", worth)
    options = {"shard_bytes": 4_000, "batch_size": 4}
    cache = extract(tiny_backbone(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr", **options)
    full = extract(tiny_backbone(), tiny_samples(), precision="bfloat16", out=tmp_path / "f.zarr", **options)
    stored = read_all(cache, [1, 2, 3, 4])
    for reader in READERS:
        assert np.array_equal(np.asarray(reader(cache.path)), stored.numpy()), reader
    exact, encoding = read_all(full, [1, 2, 3, 4]).float(), cache.encoding()
    for layer, stated in enumerate(cache.manifest.encoding["error"]):
        decoded = encoding.decode_layer(layer, stored[:, layer]).float()
        error = float((decoded - exact[:, layer]).norm() / exact[:, layer].norm())
        assert 0 < error < 1.1 * stated + 0.005


def test_labels_ids_and_tail_are_plain_arrays(tiny_cache):
    group = zarr.open_group(str(tiny_cache.path), mode="r")
    assert group["labels"][:].tolist() == tiny_cache.labels.tolist()
    ids = [bytes(row).rstrip(b"\0").decode() for row in group["sample_ids"][:]]
    assert ids == tiny_cache.ids
    assert [int(name[-3:]) % 3 for name in ids] == tiny_cache.labels.tolist()
    assert sorted(name for name, _ in group["tail"].arrays()) == ["norm.bias", "norm.weight"]


def test_points_and_rows_are_read_in_any_order(tiny_cache):
    whole = read_all(tiny_cache, [1, 2, 3, 4])
    rows = np.array([22, 0, 7, 7, 13])
    targets = [torch.empty(5, 5, 32) for _ in range(2)]
    BlockReader(tiny_cache, ["block.4", "block.2"]).read(rows, targets)
    assert torch.equal(torch.stack(targets, 1), whole[rows][:, [3, 1]])


def test_points_that_are_not_there_are_refused(tiny_cache):
    with pytest.raises(UserError, match=r"holds block\.1, block\.2, block\.3, block\.4, not block\.5, mlp\.1"):
        BlockReader(tiny_cache, ["block.4", "block.5", "mlp.1"])


def test_any_flipped_byte_of_a_shard_is_an_error_that_names_the_sample(tiny_cache):
    path = tiny_cache.shard_path(1)
    good = path.read_bytes()
    rows = np.array(list(tiny_cache.layout.rows(1)))
    for at in {*range(0, len(good), 97), len(good) - 1, len(good) - 4, len(good) - 5}:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        targets = [torch.empty(len(rows), 5, 32) for _ in range(4)]
        with pytest.raises(UserError, match=r"sample 'image-\d+' cannot be read from shard 1"):
            BlockReader(tiny_cache, tapped_points("block", [1, 2, 3, 4])).read(rows, targets)
    path.write_bytes(good)


@pytest.mark.parametrize("array", ["labels", "sample_ids", "tail/norm.weight"])
def test_flipped_bytes_of_the_small_arrays_are_found(tiny_cache, array):
    (path,) = (p for p in (tiny_cache.path / array).rglob("*") if p.is_file() and p.name != "zarr.json")
    good = path.read_bytes()
    for at in range(0, len(good), 11):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(UserError, match=r"cannot be (read|rebuilt)"):
            frozen_tail(open_cache(tiny_cache.path))


def test_file_names_that_are_not_utf_8_come_back_as_they_were(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    samples = tiny_samples(3)
    samples = replace(samples, ids=[samples.ids[0], name, samples.ids[2]])
    cache = extract(tiny_backbone(), samples, out=tmp_path / "c.zarr")
    assert sorted(cache.ids) == sorted(samples.ids)


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_torn_or_missing_shard_is_an_error_never_zeros(tiny_cache, damage):
    path = tiny_cache.shard_path(0)
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match="shard 0"):
        BlockReader(tiny_cache, tapped_points("block", [4])).read(np.array([0]), [torch.empty(1, 5, 32)])
    if damage == "gone":  # and a plain reader sees NaN
        assert np.isnan(by_zarr(tiny_cache.path)[:5]).all()


def test_no_cache_no_group_and_no_zarr_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no cache at"):
        open_cache(tmp_path)
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(UserError, match="no activation cache"):
        open_cache(tmp_path / "other.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a cache"):
        open_cache(tmp_path / "broken.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(protocol=99), "protocol 99"),
        (lambda m: m["fields"]["backbone"].update(name="other"), "altered"),
        (lambda m: m.update(complete=False), "incomplete: run the same"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["fields"].update(tap="../../elsewhere"), "elsewhere"),
        (lambda m: m["fields"].update(layers=[]), r"not as protocol 4 says \(layers \[\]"),
        (lambda m: m["fields"].update(embedding="no"), "embedding 'no'"),
        (lambda m: m["fields"].pop("embedding"), r"not as protocol 4 says \('embedding'\)"),
    ],
)
def test_altered_attributes_are_refused(tiny_cache, change, message):
    path = tiny_cache.path / "zarr.json"
    content = json.loads(path.read_text())
    change(content["attributes"]["losa_cache"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_cache(tiny_cache.path)


def test_the_latest_training_cache_is_complete_there_and_not_held_out(tmp_path):
    with pytest.raises(UserError, match="no complete training cache yet"):
        latest_training_cache()
    backbone = tiny_backbone()
    for name, split in (("one", "train"), ("two", "train"), ("three", "test")):
        extract(backbone, tiny_samples(split=split, name=name), out=tmp_path / f"{name}.zarr")
    assert latest_training_cache().path.name == "two.zarr"
    (tmp_path / "two.zarr" / "zarr.json").write_text("{}")
    assert latest_training_cache().path.name == "one.zarr"
