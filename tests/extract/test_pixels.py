"""Rules of pixels and normalisation from extraction to prediction: a part of the identity, where they differ."""

import csv
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import losa_cache as lc
from losa_cache.apply.serve.pixels import Pixels
from losa_cache.backbone import load_backbone
from losa_cache.cache.identity import identity_hash
from losa_cache.cache.inspect import inspect_cache
from losa_cache.data.load import load_samples
from losa_cache.data.pixel_rules import PixelRules, parse_rules
from losa_cache.errors import UserError
from losa_cache.train.online_config import OnlineConfig

RULES = {"range": "0..4095", "channels": "4,3,2", "page": 2}
FIELDS = {"range": "0..4095", "channels": [4, 3, 2], "page": 2}
OWN = {"backbone": "vit_digits", "device": "cpu", "precision": "float32"}


def bands(number: int) -> np.ndarray:
    """Two pages of 12 bits and five channels: class 0 is bright in the fourth channel of the second."""
    values = np.random.default_rng(number).integers(0, 2000, (2, 16, 16, 5)).astype(np.uint16)
    values[1, :, :, 3] += 2000 * (number % 2 == 0)
    return values


@pytest.fixture
def data(tmp_path):
    """The same pictures twice: ``deep``, and ``plain`` as the rules bring them to 8 bits."""
    for number in range(8):
        deep, plain = (tmp_path / kind / "ab"[number % 2] for kind in ("deep", "plain"))
        deep.mkdir(parents=True, exist_ok=True)
        plain.mkdir(parents=True, exist_ok=True)
        values = bands(number)
        tifffile.imwrite(deep / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
        seen = np.rint(values[1][..., [3, 2, 1]] / 4095 * 255).astype(np.uint8)
        Image.fromarray(seen).save(plain / f"{number}.png")
    return tmp_path


def make(data, kind, out, **options):
    return lc.extract(**OWN, dataset=str(data / kind), out=data / out, **options)


def test_a_cache_of_deep_pictures_is_that_of_the_same_in_8_bits_and_says_how(data):
    deep, plain = make(data, "deep", "a.zarr", **RULES), make(data, "plain", "b.zarr", ignore_orientation=False)
    with lc.batches(deep, shuffle=False) as ours, lc.batches(plain, shuffle=False) as theirs:
        for one, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.blocks, other.blocks, strict=True))
    assert deep.manifest.fields["pixels"] == FIELDS
    assert "pixels" not in plain.manifest.fields
    assert deep.manifest.identity == identity_hash({"protocol": 4, **deep.manifest.fields})
    assert lc.verify_cache(deep.path, recompute=8)["recomputed"]["identical"] == 8
    assert inspect_cache(deep.path)["pixels"] == FIELDS

    run = lc.train(deep, epochs=20, lr=1e-2, val_fraction=0, rank=4, head="last", device="cpu", out=data / "run").run
    adapter = lc.load_adapter(run, device="cpu")
    assert adapter.pixels == parse_rules("0..4095", "4,3,2", 2, False)
    lc.predict(run, str(data / "deep"), out=str(data / "p.csv"), top_k=1, device="cpu")
    with (data / "p.csv").open(newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert [row[1] for row in rows] == ["a"] * 4 + ["b"] * 4
    raw = (data / "deep/a/0.tif").read_bytes()
    served = Pixels(load_backbone("vit_digits").input, adapter.pixels, turned=True, max_pixels=1000)(raw)
    assert np.array_equal(served.transpose(1, 2, 0), Image.open(data / "plain/a/0.png"))

    other = make(data, "deep", "c.zarr", **RULES | {"range": "min-max"})
    with pytest.raises(UserError, match=r"pixels\.range \(.*0\.\.4095.*min-max"):
        lc.evaluate_run(run, cache=str(other.path))
    with pytest.raises(UserError, match=r"pixels\.page \(.*1"):
        make(data, "deep", "a.zarr", **RULES | {"page": 1})


def test_fresh_images_are_decoded_as_those_of_the_cache(data):
    cache = make(data, "deep", "a.zarr", **RULES)
    online = {"epochs": 1, "val_fraction": 0, "batch_size": 8, "device": "cpu", "rank": 2}

    def losses(name, **more):
        config = OnlineConfig("vit_digits", str(data / "deep"), precision="float32", **more)
        run = lc.train(cache, online=config, out=data / name, **online).run
        return (run / "metrics.jsonl").read_text().split('"train_loss": ')[1].split(",")[0]

    assert float(losses("followed", share=0.5)) > 0
    with pytest.raises(UserError, match=r"differs in pixels\.range"):
        losses("other", share=0.5, range="percentile")


def test_a_dark_picture_is_left_out_or_wanted(data):
    Image.fromarray(bands(0)[0, ..., 0]).save(data / "plain/a/dark.tif")
    skipped = make(data, "plain", "b.zarr", on_error="skip").manifest
    assert [entry["id"] for entry in skipped.skipped] == ["a/dark.tif"]
    assert re.search(r"such as 0\.\.2047, or .* --range dtype", skipped.skipped[0]["reason"])
    wanted = make(data, "plain", "c.zarr", range="dtype")
    assert wanted.manifest.fields == skipped.fields  # the pixels are the same: they have no field
    assert lc.verify_cache(wanted.path, recompute=9)["recomputed"]["identical"] == 9


def test_adapters_refuse_the_pictures_that_their_extraction_would_have_refused(data):
    Image.fromarray(bands(0)[0, ..., 0]).save(data / "dark.tif")
    answers = {}
    for name, options in (("checked", {}), ("wanted", {"range": "dtype"})):
        cache = make(data, "plain", f"{name}.zarr", **options)
        run = lc.train(cache, epochs=1, lr=1e-2, val_fraction=0, rank=1, head="last", device="cpu", out=data / name).run
        answers[name] = lc.predict(run, [data / "plain/a", data / "dark.tif"], device="cpu")
    assert (answers["checked"].rows, answers["wanted"].rows) == (4, 5)
    (skipped,) = answers["checked"].skipped
    assert skipped.id.endswith("dark.tif")
    assert re.search(r"a sixteenth of .* \(0 to 65535\), which the images of the adapter's training", skipped.reason)


def test_normalisation_is_that_of_the_input(data):
    fields = make(data, "plain", "a.zarr", normalise="clip").manifest.fields
    assert fields["input"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    own, inception, none = (load_backbone("vit_digits", normalise=name) for name in ("timm", "inception", "none"))
    assert own.input == inception.input
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(none.input.normalise(pixels), pixels / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": "1..0"}, "range is '1..0'"),
        ({"channels": "a"}, "channels is 'a'"),
        ({"page": 0}, "page is 0"),
        ({"normalise": "x"}, "unknown normalisation 'x'"),
    ],
)
def test_options_are_refused_before_anything_is_opened(options, message):
    for config in (lc.ExtractConfig, OnlineConfig):
        with pytest.raises(UserError, match=message):
            config(backbone="vit_digits", dataset="digits", **options)


def test_rules_for_what_is_not_decoded_here_are_refused(data):
    with pytest.raises(UserError, match="data set 'digits' does not hold images that .* leave out page"):
        load_samples("digits", pixels=PixelRules(page=2))
    samples = load_samples(str(data / "plain"), pixels=PixelRules(page=2))
    with pytest.raises(UserError, match=r"is loaded already, by other rules .* leave out range, or load it by"):
        lc.extract("vit_digits", samples, range="min-max")
    with pytest.raises(UserError, match="takes JPEG files as they are: choose pillow, or leave out page"):
        from losa_cache.data.nvjpeg import require_files

        require_files("nvjpeg", samples)
