"""docs/protocol.md and the code, held together in both directions."""

import hashlib
import json
import re
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from losa_cache.cache.identity import identity_hash
from losa_cache.cache.precision import PRECISIONS, get_precision
from losa_cache.cache.store import open_cache
from losa_cache.data.load import load_samples
from losa_cache.extract.extract import extract
from losa_cache.points import TAPS
from losa_cache.remake.transcode import transcode
from losa_cache.sidenet.tail import POOLS
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import DIMENSIONS, DTYPES, KINDS, NUMBERS, TargetSet
from tests.conftest import tiny_backbone, tiny_samples

PAGE = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()


def table(section: str) -> list[list[str]]:
    """Rows of the only table behind a heading: a row that another line cuts off is a mistake of the page."""
    lines = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0].splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith("|")]
    assert places == list(range(places[0], places[-1] + 1)), f"the table of {section!r} is cut in two"
    rows = [lines[place].strip("|").split(" | ") for place in places]
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
    return make(tmp_path, "bfloat16")


@pytest.fixture
def int8_cache(tmp_path):
    """With a target set, so that it has everything that a cache can have."""
    cache = make(tmp_path, "int8")
    add_targets(cache, TargetSet("count", NUMBERS, ["x"], np.ones((23, 1), np.float32)))
    return open_cache(cache.path)


def make(folder, precision, shard_bytes=6_700):
    samples, out = tiny_samples(bad=(2,)), folder / f"{precision}.zarr"
    return extract(
        tiny_backbone(),
        samples,
        on_error="skip",
        precision=precision,
        out=out,
        shard_bytes=shard_bytes,
        batch_size=4,
    )


@pytest.fixture
def attributes(int8_cache):
    return json.loads((int8_cache.path / "zarr.json").read_text())["attributes"]


def test_attributes(attributes):
    assert attributes.keys() == {"losa_cache"}
    assert attributes["losa_cache"].keys() == first_cells("Attributes") - {"made_from"}
    assert attributes["losa_cache"]["tokens"].keys() == {"total", "prefix", "grid"}
    assert [entry.keys() for entry in attributes["losa_cache"]["skipped"]] == [{"row", "id", "reason"}]


def test_identity(attributes):
    content = attributes["losa_cache"]
    assert flatten(content["fields"]) == first_cells("Identity")
    assert content["identity"] == identity_hash({"protocol": 4, **content["fields"]})
    assert content["protocol"] == 5


def test_target_sets(attributes, cache):
    plain = json.loads((cache.path / "zarr.json").read_text())["attributes"]["losa_cache"]
    assert plain["protocol"] == 4
    assert first_cells("Attributes") - plain.keys() == {"targets", "made_from"}
    (entry,) = attributes["losa_cache"]["targets"].values()
    section = PAGE.split("\n## Target sets\n")[1]
    assert entry.keys() == set(re.findall(r'"(\w+)"', re.search(r"An entry is `([^`]*)`", section)[1]))
    described = json.dumps(["numbers", ["x"], "float32", [23, 1]]).encode()
    assert entry["fingerprint"] == "sha256:" + hashlib.sha256(described + np.ones(23, "<f4").tobytes()).hexdigest()
    kinds = {row[0].strip("`"): (row[1].strip("`"), row[2].count(",") + 1) for row in table("Target sets")}
    assert kinds == {kind: (DTYPES[kind], DIMENSIONS[kind]) for kind in KINDS}


def test_a_cache_made_of_another(int8_cache, tmp_path):
    made = transcode(int8_cache, tmp_path / "made.zarr", layers=2)
    content = json.loads((made.path / "zarr.json").read_text())["attributes"]["losa_cache"]
    assert content.keys() == first_cells("Attributes")
    assert content["protocol"] == 6
    (entry,) = content["made_from"]
    row = next(row for row in table("Attributes") if row[0] == "`made_from`")
    assert entry.keys() == set(re.findall(r'"(\w+)"', row[1]))
    assert content["fields"]["made_from"] == [entry["identity"]]
    assert entry["identity"] == identity_hash({"protocol": 4, **entry["fields"]})


def test_points(tmp_path):
    (row,) = (row for row in table("Identity") if row[0] == "`tap`")
    assert set(re.findall("`([^`]+)`", row[1])) == set(TAPS)
    named = set()
    for tap in TAPS:
        cache = extract(tiny_backbone(), tiny_samples(3), tap=tap, embedding=True, out=tmp_path / f"{tap}.zarr")
        assert (cache.path / "activations" / tap / "zarr.json").is_file()
        assert cache.layout.layers == len(cache.manifest.points)
        named |= {re.sub(r"\d+", "<l>", point) for point in cache.manifest.points}
    pooled = extract(tiny_backbone(), tiny_samples(3), tokens="pooled", out=tmp_path / "pooled.zarr")
    assert pooled.layout.shape[1:3] == (len(pooled.manifest.points), 2)
    named.add(pooled.manifest.points[-1])
    assert named == first_cells("Points")


def test_tail(attributes):
    assert attributes["losa_cache"]["tail"].keys() | {"map"} == first_cells("Tail")
    assert set(re.findall(r"`(\w+)`", table("Tail")[1][1])) == set(POOLS)
    pooled = tiny_backbone(class_token=False, global_pool="map").tail.config["map"]
    assert pooled.keys() == set(re.findall(r'"(\w+)"', table("Tail")[5][1]))


def test_encoding(attributes, tmp_path):
    (row,) = (row for row in table("Attributes") if row[0] == "`encoding`")
    predicted = make(tmp_path, "predict:2").manifest.encoding
    assert attributes["losa_cache"]["encoding"].keys() | predicted.keys() == set(re.findall("`([^`]+)`", row[1]))


def test_prediction(tmp_path):
    cache = make(tmp_path, "predict:2", shard_bytes=300)
    named = {name: row[1].strip("`") for row in table("Prediction") for name in re.findall(r"`([^`]+)`", row[0])}
    stored = {f"scales/{path.name}": path for path in (cache.path / "scales").iterdir() if path.is_dir()}
    assert stored.keys() == named.keys()
    for name, path in stored.items():
        assert json.loads((path / "zarr.json").read_text())["data_type"] == named[name]
    assert cache.layout.shape[1:3] == (1, 1)
    assert cache.layout.shards > 1


def test_arrays(int8_cache):
    cache = int8_cache
    stored = {str(p.parent.relative_to(cache.path)) for p in cache.path.rglob("zarr.json")} - {
        ".",
        "activations",
        "scales",
        "tail",
        "targets",
    }
    named = {row[0].strip("`"): row for row in table("Arrays")}
    general = {name: re.sub("^(tail|scales|targets)/.*", r"\1/<name>", name) for name in stored}
    general["activations/block"] = "activations/<tap>"
    assert set(general.values()) == set(named)
    for name in stored:
        row = named[general[name]]
        data_type = json.loads((cache.path / name / "zarr.json").read_text())["data_type"]
        assert row[1] in (f"`{data_type}`", "see *Precision*", "see *Precision*, *Prediction*", "see *Target sets*")


def test_small_arrays_carry_checksums(int8_cache):
    for array in ("labels", "sample_ids", "tail/norm.weight", "scales/channel"):
        codecs = json.loads((int8_cache.path / array / "zarr.json").read_text())["codecs"]
        assert [codec["name"] for codec in codecs] == ["bytes", "zstd", "crc32c"]


def test_precisions():
    named = {name: row[1].strip("`") for row in table("Precision") for name in re.findall(r"`([^`]+)`", row[0])}
    examples = {"predict:<B>": "predict:1.5", "predict:<E>%": "predict:20%"}
    known = {name: precision.storage for name, precision in PRECISIONS.items()}
    assert named == known | {name: get_precision(example).storage for name, example in examples.items()}


@pytest.mark.parametrize(
    ("precision", "columns", "fill"), [("bfloat16", 32, 0x7FC0), ("int8", 34, 255), ("int4", 18, 255)]
)
def test_activations_metadata(precision, columns, fill, tmp_path):
    cache = make(tmp_path, precision)
    meta = json.loads((cache.path / "activations" / "block" / "zarr.json").read_text())
    assert meta["chunk_grid"]["configuration"]["chunk_shape"] == [cache.layout.shard_samples, 4, 5, columns]
    assert meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
    assert meta["fill_value"] == fill
    (line,) = re.findall(r"The dimensions are named (.*)\.", PAGE)
    *names, channel, byte = re.findall(r"`(\w+)`", line)
    assert meta["dimension_names"] == [*names, channel if precision == "bfloat16" else byte]
    assert meta["attributes"] == {"dtype": precision}
    (codec,) = meta["codecs"]
    assert codec["name"] == "sharding_indexed"
    inner = codec["configuration"]
    assert inner["chunk_shape"] == [1, 4, 5, columns]
    assert inner["index_location"] == "end"
    assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
    ratio = json.loads((cache.path / "zarr.json").read_text())["attributes"]["losa_cache"]["encoding"]["compressed"]
    names = ["bytes", "crc32c"] if ratio is None else ["bytes", "blosc", "crc32c"]
    assert [c["name"] for c in inner["codecs"]] == names
    if precision == "bfloat16":
        assert inner["codecs"][0]["configuration"] == {"endian": "little"}
    if ratio is not None:
        blosc = inner["codecs"][1]["configuration"]
        assert (blosc["cname"], blosc["shuffle"], blosc["typesize"]) == ("lz4", "bitshuffle", cache.layout.itemsize)


def test_samples_lie_in_order_without_gaps(cache):
    layout = cache.layout
    skipped = {entry["row"] for entry in cache.manifest.skipped}
    for shard in range(layout.shards):
        raw = cache.shard_path(shard).read_bytes()
        index = np.frombuffer(raw[-layout.index_bytes : -4], dtype="<u8").reshape(layout.shard_samples, -1, 2)
        present = [row - layout.rows(shard)[0] for row in layout.rows(shard) if row not in skipped]
        lengths = index[present, 0, 1].tolist()
        assert index[present, 0, 0].tolist() == [sum(lengths[:i]) for i in range(len(present))]
        assert sum(lengths) + layout.index_bytes == len(raw)
        absent = [i for i in range(layout.shard_samples) if i not in present]
        assert (index[absent] == 2**64 - 1).all()


def test_receipts(cache):
    folder = cache.receipts
    assert {p.name for p in folder.iterdir()} == {
        "lock",
        "core",
        "checksums",
        *(f"{s:06d}.json" for s in range(cache.layout.shards)),
    }
    receipt = json.loads((folder / "000001.json").read_text())
    seal = receipt.pop("seal")
    assert receipt.keys() == first_cells("Writing")
    assert seal == google_crc32c.value(json.dumps(receipt, sort_keys=True, separators=(",", ":")).encode())
    raw = cache.shard_path(1).read_bytes()
    assert receipt["bytes"] == len(raw)
    index = raw[-cache.layout.index_bytes : -4]
    entries = np.frombuffer(index, dtype="<u8").reshape(-1, 2)
    ends = [int(offset + length) for offset, length in entries if offset != 2**64 - 1]
    checksums = b"".join(raw[end - 4 : end] for end in ends)
    lists = {path.name: path for path in (folder / "checksums").iterdir()}
    assert lists.keys() == {f"{s:06d}.crc32c" for s in range(cache.layout.shards)}
    assert "`<name>.zarr.receipts/checksums/<shard, six digits>.crc32c`" in PAGE
    assert lists["000001.crc32c"].read_bytes() == checksums
    assert receipt["digest"] == hashlib.sha256(checksums + index).hexdigest()


def test_sources(tmp_path):
    for number in range(5):
        path = tmp_path / "data" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    cache = extract(tiny_backbone(), load_samples(str(tmp_path / "data")), out=tmp_path / "a.zarr", shard_bytes=3_000)
    assert cache.layout.shards > 1
    listed = json.loads((cache.receipts / "sources/000001.json").read_text())
    seal = listed.pop("seal")
    assert listed.keys() == first_cells("Sources")
    assert seal == google_crc32c.value(json.dumps(listed, sort_keys=True, separators=(",", ":")).encode())
    assert (listed["identity"], listed["shard"]) == (cache.manifest.identity, 1)
    for place, row in enumerate(cache.layout.rows(1)):
        file = tmp_path / "data" / cache.ids[row]
        assert listed["digest"][place] == hashlib.sha256(file.read_bytes()).hexdigest()
        status = file.stat()
        stamps = (listed["size"][place], listed["modified"][place], listed["inode"][place])
        assert stamps == (status.st_size, status.st_mtime_ns, status.st_ino)
    assert flatten(cache.manifest.fields) - first_cells("Identity") == {"orientation"}


def test_the_copy_of_the_core(cache):
    copy = cache.receipts / "core"
    listed = json.loads((copy / "files.json").read_text())["files"]
    core = {
        p.relative_to(cache.path).as_posix(): p for p in cache.path.rglob("*") if p.is_file() and p.name[:2] != "c."
    }
    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in core.items()}
    assert all((copy / name).read_bytes() == path.read_bytes() for name, path in core.items())
