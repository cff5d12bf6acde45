"""A finished cache in another form: held to direct extraction, to another reader, and to a killed process."""

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache import sources
from losa_cache.cache import compression
from losa_cache.cache.registry import knows
from losa_cache.cache.store import open_cache
from losa_cache.cli import app
from losa_cache.data.load import load_samples
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import MULTILABEL, TargetSet
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.extract.test_taps import plain_array
from tests.servers import BUCKET
from tests.steps import killed_at_steps, made_anew

SMALL = {"shard_bytes": 5_200, "batch_size": 4, "on_error": "skip"}


def same_but_for_the_root(made, direct):
    """Every file of a cache and of its receipts is that of another; the root says what it was made from."""
    for ours, theirs, differ in (
        (made.path, direct.path, {"zarr.json"}),
        (made.receipts, direct.receipts, {"core/zarr.json", "core/files.json"}),
    ):
        a, b = contents(ours), contents(theirs)
        assert a.keys() == b.keys()
        assert {name for name in a if a[name] != b[name]} == differ
    assert made.manifest.fields == direct.manifest.fields
    assert made.manifest.identity == direct.manifest.identity
    assert (made.manifest.skipped, made.manifest.encoding) == (direct.manifest.skipped, direct.manifest.encoding)


@pytest.fixture
def folder(tmp_path):
    """Images in files, one of which does not decode."""
    random = np.random.default_rng(0)
    for number in range(14):
        place = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place)
    place.write_bytes(place.read_bytes()[:60])
    return load_samples(str(tmp_path / "images"))


@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_fewer_layers_are_those_of_a_direct_extraction_bit_for_bit(compressed, folder, tmp_path, monkeypatch):
    if compressed:
        monkeypatch.setattr(compression, "WORTH_BYTES", 0)
        monkeypatch.setattr(compression, "WORTH_RATIO", 2)
    monkeypatch.setattr(sources, "_SETTLED", -1)  # or what is recorded depends on the age of the files
    options = {"views": 2, "augment": "crop", **SMALL}
    whole = extract(tiny_backbone(), folder, out=tmp_path / "all.zarr", **options | {"shard_bytes": 13_000})
    direct = extract(tiny_backbone(), folder, out=tmp_path / "direct.zarr", layers="2,4", **options)
    made = lc.transcode(whole, tmp_path / "made.zarr", layers="2,4", shard_bytes=5_200, workers=3)
    assert whole.layout.compressed == compressed
    assert direct.layout.shards > 3
    if compressed:  # the ratio was measured on all layers
        assert made.manifest.encoding.keys() == direct.manifest.encoding.keys()
        made.manifest.encoding["compressed"] = direct.manifest.encoding["compressed"]
    same_but_for_the_root(made, direct)  # the lists of source files among them
    assert [entry["identity"] for entry in made.manifest.made_from] == [whole.manifest.identity]
    assert made.manifest.made_from[0]["fields"] == whole.manifest.fields
    assert verify_cache(made.path)["intact"]


@pytest.mark.slow
def test_another_store_takes_the_same_bytes_there_and_back(tmp_path, s3_environment, request):
    url = f"s3://{BUCKET}/{request.node.name}/c.zarr"
    whole = extract(tiny_backbone(), tiny_samples(bad=(2,)), precision="int8", out=tmp_path / "a.zarr", **SMALL)
    there = lc.transcode(whole, url, shard_bytes="6kB")
    assert verify_cache(url)["intact"]
    back = lc.transcode(there, tmp_path / "back.zarr", shard_bytes=5_200)
    same_but_for_the_root(back, whole)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_float32_values_are_rounded_as_torch_rounds_them(precision, tmp_path):
    whole = extract(tiny_backbone(), tiny_samples(bad=(2,)), precision="float32", out=tmp_path / "a.zarr", **SMALL)
    made = lc.transcode(whole, tmp_path / "b.zarr", precision=precision, workers=2)
    there = whole.labels >= 0
    exact, stored = (torch.as_tensor(np.asarray(plain_array(one))[there]) for one in (whole, made))
    rounded = exact.to(getattr(torch, precision))
    assert torch.equal(stored.view(torch.int16), rounded.view(torch.int16))
    assert "made_from" not in made.manifest.fields  # the fields say all that decides the numbers
    assert made.manifest.skipped == whole.manifest.skipped
    assert np.array_equal(made.labels, whole.labels)


@pytest.mark.parametrize(
    "precision",
    [pytest.param("int8", marks=pytest.mark.slow), pytest.param("int4", marks=pytest.mark.slow), "predict:6"],
)
def test_lossy_precisions_are_fitted_anew_and_say_what_they_were_made_of(precision, tmp_path):
    whole = extract(tiny_backbone(), tiny_samples(60), out=tmp_path / "a.zarr", **SMALL)
    made = lc.transcode(whole, tmp_path / "b.zarr", precision=precision, layers=2)
    assert made.manifest.fields["made_from"] == [whole.manifest.identity]
    positions = [1, 3]
    exact = plain_array(whole).view(torch.bfloat16)[:, positions].float()
    encoding, stored = made.encoding(), plain_array(made)
    for at, decoded in enumerate(encoding.decode([own.contiguous() for own in stored.unbind(1)])):
        error = (decoded.float() - exact[:, at]).norm() / exact[:, at].norm()
        assert error <= 1.2 * made.manifest.encoding["error"][at]
    found = verify_cache(made.path, recompute=20, backbone=tiny_backbone(), dataset=tiny_samples(60))
    assert found["intact"]  # within the errors of both precisions
    assert found["recomputed"]["rows"] == 20


def test_fewer_layers_of_integers_keep_their_codes_and_constants(tmp_path):
    whole = extract(tiny_backbone(), tiny_samples(), precision="int8", out=tmp_path / "a.zarr", **SMALL)
    made = lc.transcode(whole, tmp_path / "b.zarr", layers="1,4")
    assert torch.equal(plain_array(made), plain_array(whole)[:, [0, 3]])
    ours, theirs = (zarr.open_array(str(one.path / "scales/channel"))[:] for one in (made, whole))
    assert np.array_equal(ours, theirs[[0, 3]])
    assert made.manifest.encoding["error"] == [whole.manifest.encoding["error"][at] for at in (0, 3)]
    assert made.manifest.fields["made_from"] == [whole.manifest.identity]


@pytest.mark.parametrize(
    "precision", ["int4", *(pytest.param(own, marks=pytest.mark.slow) for own in ("float32", "predict:6"))]
)
def test_other_shards_change_nothing_else(precision, tmp_path):
    options = SMALL | {"precision": precision}
    whole = extract(tiny_backbone(), tiny_samples(40, bad=(2,)), out=tmp_path / "a.zarr", **options)
    made = lc.transcode(whole, tmp_path / "b.zarr", shard_bytes=2_000)
    assert made.layout.shards > whole.layout.shards
    assert made.manifest.identity == whole.manifest.identity
    ours, theirs = (plain_array(one).contiguous().view(torch.uint8) for one in (made, whole))
    assert torch.equal(ours, theirs)
    for name, constants in whole.encoding().constants().items():
        assert torch.equal(made.encoding().constants()[name], constants)
    assert verify_cache(made.path)["intact"]


def test_pooled_rows_are_those_of_a_pooled_extraction(tmp_path):
    options = {"precision": "float32", "tap": "both", "embedding": True, **SMALL}
    whole = extract(tiny_backbone(), tiny_samples(bad=(2,)), out=tmp_path / "a.zarr", **options)
    direct = extract(tiny_backbone(), tiny_samples(bad=(2,)), out=tmp_path / "d.zarr", tokens="pooled", **options)
    made = lc.transcode(whole, tmp_path / "p.zarr", tokens="pooled")
    assert made.manifest.points == direct.manifest.points
    assert made.manifest.fields == direct.manifest.fields | {"made_from": [whole.manifest.identity]}
    assert (made.manifest.tail, made.manifest.tokens) == (direct.manifest.tail, direct.manifest.tokens)
    there = made.labels >= 0
    torch.testing.assert_close(plain_array(made)[there], plain_array(direct)[there], rtol=1e-5, atol=1e-5)
    fewer = lc.transcode(made, tmp_path / "f.zarr", layers="2,4", precision="bfloat16")
    branches = ["attention.2", "mlp.2", "attention.4", "mlp.4"]
    assert fewer.manifest.points == ["embedding", *branches, "block.4", "tail"]
    assert verify_cache(fewer.path)["intact"]


def test_target_sets_counts_and_trust_are_carried_over(tmp_path):
    whole = extract("vit_digits", "digits", limit=6, layers=2, precision="float16", out=tmp_path / "a.zarr")
    labels = TargetSet("several", MULTILABEL, ["x", "y"], np.array([[0, 1]] * 6, np.int8))
    add_targets(whole, labels)
    made = lc.transcode(whole.path, tmp_path / "b.zarr", layers=1)
    assert np.array_equal(made.target_set("several").values, labels.values)
    assert made.manifest.protocol == 6
    assert knows(made.path, made.manifest)  # what this user extracted may be opened again
    assert verify_cache(made.path, recompute=3)["recomputed"]["identical"] == 3
    assert made.manifest.options["layers"] == made.manifest.layers


def test_values_that_overflowed_are_counted_in_the_layers_that_stay(tmp_path):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[1].mlp.fc2.bias[:3] = 1e6  # from the second block on
    whole = extract(backbone, tiny_samples(5), precision="float16", out=tmp_path / "a.zarr", **SMALL)
    stored = plain_array(whole)
    assert whole.manifest.overflowed == int((stored.abs() == 65504).sum()) > 0
    for layers in ("1,4", "4,", "all"):
        made = lc.transcode(whole, tmp_path / f"{layers}.zarr", layers=layers)
        assert made.manifest.overflowed == int((plain_array(made).abs() == 65504).sum())


REFUSED = {
    "finer": ("int8", {"precision": "bfloat16"}, "precision bfloat16 is finer than int8, .* hold nothing more"),
    "finer float": ("bfloat16", {"precision": "float16"}, "float16 is finer than bfloat16"),
    "finer bits": ("predict:1", {"precision": "predict:2"}, "predict:2 is finer than predict:1"),
    "finer error": ("int4", {"precision": "predict:1%"}, "predict:1% is finer than int4"),
    "no layer": ("int8", {"layers": "3,4"}, "there is no layer 3: choose among 2, 4"),
    "chain": ("predict:4", {"layers": "4,"}, "predict:4 predicts each layer .* and layers 2 would be missing"),
    "coarse rows": ("predict:4", {"tokens": "pooled"}, "'predict:4', but pooled rows are few"),
    "itself": ("int8", {"out": "c.zarr"}, "is the cache itself, or lies in it or its receipts: choose another --out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused_before_anything_is_written(case, tmp_path):
    precision, change, message = REFUSED[case]
    cache = extract(tiny_backbone(), tiny_samples(40), precision=precision, layers=2, out=tmp_path / "c.zarr")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        lc.transcode(cache, **{"out": tmp_path / "new.zarr"} | {
            name: tmp_path / value if name == "out" else value for name, value in change.items()
        })  # fmt: skip
    assert contents(tmp_path) == before


def test_tokens_are_not_made_of_pooled_rows(tmp_path):
    pooled = extract(tiny_backbone(), tiny_samples(5), tokens="pooled", out=tmp_path / "c.zarr")
    with pytest.raises(UserError, match="holds pooled rows alone, of which tokens cannot be made: leave out --tokens"):
        lc.transcode(pooled, tmp_path / "new.zarr", tokens="all")


def test_a_damaged_source_is_named_and_a_damaged_result_is_made_anew(tmp_path):
    whole = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "a.zarr", **SMALL)
    made = lc.transcode(whole, tmp_path / "b.zarr", precision="int8", shard_bytes=5_200)
    before = contents(made.path)
    for place in (made.shard_path(1), whole.shard_path(2)):  # of the same rows
        content = place.read_bytes()
        place.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(UserError, match=r"1 damaged shards of .*b\.zarr' hold values of another cache, .* transcode"):
        verify_cache(made.path, repair=True, backbone=tiny_backbone(), dataset=tiny_samples())
    with pytest.raises(UserError, match=r"sample 'image-\d+' cannot be read from shard 2 of .*a\.zarr'"):
        lc.transcode(whole, made.path, precision="int8")
    whole.shard_path(2).write_bytes(content)
    lc.transcode(whole, made.path, precision="int8")
    assert contents(made.path) == before
    assert verify_cache(made.path)["intact"]


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_killed_at_any_step_it_goes_on_and_ends_bit_identical(every, tmp_path):
    whole = extract(tiny_backbone(), tiny_samples(9, bad=(2,)), out=tmp_path / "a.zarr", **SMALL)
    lc.transcode(whole, tmp_path / "wanted.zarr", layers=2, shard_bytes=2_100)
    (tmp_path / "at").mkdir()
    code = made_anew(tmp_path, 'lc.transcode(base / "a.zarr", new, layers=2, shard_bytes=2_100, workers=2)')
    assert killed_at_steps(code, tmp_path / "at", kills=50 if every else 1) >= 1


def test_the_command_line(tmp_path):
    extract(tiny_backbone(), tiny_samples(), out=tmp_path / "a.zarr", **SMALL)
    command = ["transcode", str(tmp_path / "a.zarr"), "--out", str(tmp_path / "b.zarr"), "--layers", "2", "--json"]
    done = CliRunner().invoke(app, [*command, "--precision", "int8", "--shard-bytes", "1MB"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert open_cache(tmp_path / "b.zarr").manifest.layers == [2, 4]
    for words, message in (
        (["--precision", "int3"], "choose one of float32"),
        (["--shard-bytes", "many"], "'many' is no size"),
        (["--tokens", "some"], "unknown tokens 'some'"),
    ):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, [*command, *words], catch_exceptions=False)
