"""docs/protocol.md and the code, held together in both directions."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from losa_cache.cache.identity import identity_hash
from losa_cache.cache.precision import PRECISIONS
from losa_cache.extract.extract import extract
from losa_cache.sidenet.tail import POOLS
from tests.conftest import tiny_backbone, tiny_samples

PAGE = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()


def table(section: str) -> list[list[str]]:
    """Rows of the first table behind a heading (or behind a header row's first cell)."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def first_cells(section: str) -> set[str]:
    return {name for row in table(section) for name in re.findall(r"`([^`]+)`", row[0])}


def flatten(value: dict, prefix: str = "") -> set[str]:
    names = set()
    for key, inner in value.items():
        names |= flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key}
    return names


@pytest.fixture
def cache(tmp_path):
    samples = tiny_samples(bad=(2,))
    return extract(tiny_backbone(), samples, on_error="skip", out=tmp_path / "c.zarr", shard_bytes=6_700, batch_size=4)


@pytest.fixture
def attributes(cache):
    return json.loads((cache.path / "zarr.json").read_text())["attributes"]


def test_attributes(attributes):
    assert attributes.keys() == {"losa_cache"}
    assert attributes["losa_cache"].keys() == first_cells("Attributes")
    assert attributes["losa_cache"]["tokens"].keys() == {"total", "prefix", "grid"}
    assert [entry.keys() for entry in attributes["losa_cache"]["skipped"]] == [{"row", "id", "reason"}]


def test_identity(attributes):
    content = attributes["losa_cache"]
    assert flatten(content["fields"]) == first_cells("Identity")
    assert content["identity"] == identity_hash({"protocol": 2, **content["fields"]})


def test_tail(attributes):
    assert attributes["losa_cache"]["tail"].keys() | {"map"} == first_cells("Tail")
    assert set(re.findall(r"`(\w+)`", table("Tail")[1][1])) == set(POOLS)
    pooled = tiny_backbone(class_token=False, global_pool="map").tail.config["map"]
    assert pooled.keys() == set(re.findall(r'"(\w+)"', table("Tail")[5][1]))


def test_arrays(cache):
    stored = {str(p.parent.relative_to(cache.path)) for p in cache.path.rglob("zarr.json")} - {
        ".",
        "activations",
        "tail",
    }
    named = {row[0].strip("`"): row for row in table("Arrays")}
    assert {re.sub("^tail/.*", "tail/<name>", name) for name in stored} == set(named)
    for name in stored:
        row = named[re.sub("^tail/.*", "tail/<name>", name)]
        data_type = json.loads((cache.path / name / "zarr.json").read_text())["data_type"]
        assert row[1] in (f"`{data_type}`", "see *Precision*")


def test_small_arrays_carry_checksums(cache):
    for array in ("labels", "sample_ids", "tail/norm.weight"):
        codecs = json.loads((cache.path / array / "zarr.json").read_text())["codecs"]
        assert [codec["name"] for codec in codecs] == ["bytes", "zstd", "crc32c"]


def test_precisions():
    assert {row[0].strip("`"): row[1].strip("`") for row in table("Precision")} == {
        name: precision.storage for name, precision in PRECISIONS.items()
    }


def test_activations_metadata(cache):
    meta = json.loads((cache.path / "activations" / "block" / "zarr.json").read_text())
    assert meta["chunk_grid"]["configuration"]["chunk_shape"] == [cache.layout.shard_samples, 4, 5, 32]
    assert meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
    assert meta["fill_value"] == 0x7FC0
    (line,) = re.findall(r"Its dimensions are named (.*)\.", PAGE)
    assert meta["dimension_names"] == re.findall(r"`(\w+)`", line)
    assert meta["attributes"] == {"dtype": "bfloat16"}
    (codec,) = meta["codecs"]
    assert codec["name"] == "sharding_indexed"
    inner = codec["configuration"]
    assert inner["chunk_shape"] == [1, 4, 5, 32]
    assert inner["index_location"] == "end"
    assert [c["name"] for c in inner["codecs"]] == [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
    assert inner["codecs"][0]["configuration"] == {"endian": "little"}


def test_samples_lie_in_order_without_gaps(cache):
    layout = cache.layout
    skipped = {entry["row"] for entry in cache.manifest.skipped}
    for shard in range(layout.shards):
        raw = cache.shard_path(shard).read_bytes()
        index = np.frombuffer(raw[-layout.index_bytes : -4], dtype="<u8").reshape(layout.shard_samples, -1, 2)
        present = [row - layout.rows(shard)[0] for row in layout.rows(shard) if row not in skipped]
        assert index[present, 0, 0].tolist() == [i * layout.sample_bytes for i in range(len(present))]
        absent = [i for i in range(layout.shard_samples) if i not in present]
        assert (index[absent] == 2**64 - 1).all()


def test_receipts(cache):
    folder = cache.path.with_name("c.zarr.receipts")
    assert {p.name for p in folder.iterdir()} == {"lock", *(f"{s:06d}.json" for s in range(cache.layout.shards))}
    receipt = json.loads((folder / "000001.json").read_text())
    assert receipt.keys() == first_cells("Writing")
    assert receipt["bytes"] == cache.shard_path(1).stat().st_size
    import google_crc32c

    assert receipt["crc32c"] == google_crc32c.value(cache.shard_path(1).read_bytes())
