"""Attacks on a cache that leave every checksum right: files and rows that belong elsewhere, and how to see it."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
import zarr

from losa_cache.cache import compression
from losa_cache.cache.identity import identity_hash
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.store import open_cache
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples

SKIPPED = (18, 15)  # the first row and the last
KINDS = {
    "int8": {"precision": "int8", "shard_bytes": 4_000},
    "compressed": {"precision": "bfloat16", "shard_bytes": 7_000},
    "predicted": {"precision": "predict:2", "shard_bytes": 600},
    "views": {"precision": "float16", "shard_bytes": 7_000, "views": 2, "augment": "crop"},
}
ROW = 4 * 5 * 34 + 4  # bytes of a row in int8: one chunk of four layers, and its checksum


@dataclass
class Pair:
    """Two caches of the same shape, and how to make the first again."""

    own: Path
    other: Path
    options: dict

    def again(self, out, **changed):
        """Extract the first again; give the images computed."""
        meter = Meter()
        extract(tiny_backbone(), tiny_samples(bad=SKIPPED), out=out, meter=meter, **(self.options | changed))
        return meter.images

    def copy(self, folder):
        """Copy both, receipts beside them, to be attacked."""
        copied = []
        for path in (self.own, self.other):
            for name in (path.name, path.name + ".receipts"):
                shutil.copytree(path.parent / name, folder / name)
            copied.append(folder / path.name)
        return copied


def make(kind, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "WORTH_BYTES", 0)
        patch.setattr(compression, "WORTH_RATIO", 2 if kind == "compressed" else 0)
        options = KINDS[kind] | {"batch_size": 4, "on_error": "skip"}
        pair = Pair(folder / "own.zarr", folder / "other.zarr", options)
        pair.again(pair.own)
        samples = tiny_samples(bad=SKIPPED, name="other")
        samples.labels[:] = (samples.labels + 1) % 3
        samples = replace(samples, ids=[name.replace("image", "photo") for name in samples.ids])
        extract(tiny_backbone(seed=1), samples, out=pair.other, **options)
    return pair


def receipts(path):
    return path.with_name(path.name + ".receipts")


def shard(path, number):
    return path / "activations" / "block" / f"c.{number}.0.0.0"


def exchange(a, b):
    first = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)


def files_of(path, number):
    """A shard, its receipt and its list."""
    return shard(path, number), receipts(path) / f"{number:06d}.json", receipts(path) / f"checksums/{number:06d}.crc32c"


def exchange_shards(count):
    def attack(own, other):
        for a, b in list(zip(files_of(own, 1), files_of(own, 2), strict=True))[:count]:
            exchange(a, b)

    return attack


def take_shard(count):
    def attack(own, other):
        for a, b in list(zip(files_of(own, 1), files_of(other, 1), strict=True))[:count]:
            shutil.copy(b, a)

    return attack


def take(*names):
    def attack(own, other):
        for name in names:
            shutil.copy(other / name, own / name)

    return attack


def exchange_rows(own, other):
    raw = bytearray(shard(own, 1).read_bytes())
    raw[:ROW], raw[ROW : 2 * ROW] = raw[ROW : 2 * ROW], raw[:ROW]
    shard(own, 1).write_bytes(raw)


def exchange_index_entries(own, other):
    raw = shard(own, 1).read_bytes()
    size = (
        16
        * json.loads((own / "activations/block/zarr.json").read_text())["chunk_grid"]["configuration"]["chunk_shape"][0]
    )
    data, index = raw[: -size - 4], bytearray(raw[-size - 4 : -4])
    index[:16], index[16:32] = index[16:32], index[:16]
    shard(own, 1).write_bytes(data + index + google_crc32c.value(bytes(index)).to_bytes(4, "little"))


def float_labels(own, other):
    group = zarr.open_group(str(own), mode="r+")
    labels = (group["labels"][:] + 1).clip(max=2).astype(np.float64)
    del group["labels"]
    group.create_array("labels", data=labels)


def edit(change):
    def attack(own, other):
        content = json.loads((own / "zarr.json").read_text())
        manifest = content["attributes"]["losa_cache"]
        change(manifest)
        manifest["identity"] = identity_hash({"protocol": manifest["protocol"], **manifest["fields"]})
        (own / "zarr.json").write_text(json.dumps(content))

    return attack


def use(path):
    """Read everything that a training reads: labels, ids, scales, tail and every chunk."""
    cache = open_cache(path)
    cache.encoding()
    tail = frozen_tail(cache).state_dict()
    rows = np.flatnonzero(cache.labels >= 0)
    shape = (len(rows), cache.layout.tokens, cache.layout.columns)
    reader = BlockReader(cache, cache.manifest.points)
    blocks = [torch.empty(shape, dtype=cache.precision.stored_dtype) for _ in reader.positions]
    try:
        reader.read(rows, blocks)
    finally:
        reader.close()
    return cache.labels.tolist(), cache.ids, tail, blocks


def require_same(one, other):
    assert one[:2] == other[:2]
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])
    assert all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True))


SHARDS = {  # what is attacked, and the shards that are to be computed again
    "two shards exchanged": (exchange_shards(1), (1, 2)),
    "with their receipts": (exchange_shards(2), (1, 2)),
    "with receipts and lists": (exchange_shards(3), (1, 2)),
    "a shard of another cache": (take_shard(1), (1,)),
    "with its receipt": (take_shard(2), (1,)),
    "with receipt and list": (take_shard(3), (1,)),
}
ROWS = {
    "rows exchanged": (exchange_rows, (1,)),
    "index entries exchanged": (exchange_index_entries, (1,)),
}
FILES = {  # what is attacked, and the file that is named
    "labels": (take("labels/c/0"), "labels/c/0"),
    "sample ids": (take("sample_ids/c/0/0"), "sample_ids/c/0/0"),
    "tail": (take("tail/norm.weight/c/0"), "tail/norm.weight/c/0"),
    "scales": (take("scales/channel/c/0/0"), "scales/channel/c/0/0"),
    "labels as float64": (float_labels, "labels/zarr.json"),
    "a layer twice": (edit(lambda m: m["fields"].update(layers=[1, 1, 3, 4])), "zarr.json"),
    "views": (edit(lambda m: m["fields"]["views"].update(count=23)), "zarr.json"),
    "class tokens of the tail": (edit(lambda m: m["tail"].update(class_tokens=2)), "zarr.json"),
    "class names": (edit(lambda m: m["classes"].reverse()), "zarr.json"),
    "the root of another cache": (take("zarr.json"), "zarr.json"),
}
