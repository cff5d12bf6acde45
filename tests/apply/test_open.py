"""Which weights an adapter's backbone is loaded with, and what arguments name adapters."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import losa_cache as lc
from losa_cache.apply.names import is_adapter, name_adapters
from losa_cache.apply.open import backbone_for
from losa_cache.backbone.names import DIGITS_WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path):
    """A run on the embedded backbone with weights of one's own."""
    own = {name: value * 1.01 for name, value in load_file(DIGITS_WEIGHTS).items()}
    save_file(own, tmp_path / "own.safetensors")
    cache = lc.extract(
        "vit_digits", "digits", weights=str(tmp_path / "own.safetensors"), limit=20, precision="float32",
        device="cpu", out=tmp_path / "c.zarr",
    )  # fmt: skip
    return lc.train(cache, side="linear", epochs=1, device="cpu", out=tmp_path / "run").run


def test_weights_come_from_where_a_cache_of_ones_own_had_them(run, tmp_path):
    adapters = {"a": lc.load_adapter(run, device="cpu")}
    wanted = adapters["a"].config["cache"]["fields"]["backbone"]["weights"]
    assert backbone_for(adapters, device=CPU).weights == wanted
    for note in (Path(os.environ["LOSA_CACHE_HOME"]) / "known").iterdir():  # as of a cache that somebody else made
        content = json.loads(note.read_text())
        del content["options"]
        note.write_text(json.dumps(content))
    with pytest.raises(lc.UserError, match="trained on other weights of 'vit_digits' than 'pretrained'"):
        backbone_for(adapters, device=CPU)
    assert backbone_for(adapters, weights=str(tmp_path / "own.safetensors"), device=CPU).weights == wanted
    with pytest.raises(lc.UserError, match=r"than 'random': they differ in backbone\.weights"):
        backbone_for(adapters, weights="random", device=CPU)


def test_what_names_an_adapter(run, tmp_path):
    assert is_adapter(str(run))
    assert is_adapter(f"birds={run}")
    assert is_adapter("hub:me/cats@v2")
    assert not any(map(is_adapter, [str(tmp_path), "photos", "a" * 300, "a\0b", "x=photos"]))
    places = [str(run), f"birds={run / 'adapter'}", "hub:me/cats@v2"]
    assert list(name_adapters(places)) == ["run", "birds", "cats"]
    for given, message in (
        ([str(run), str(run / "adapter")], "two adapters are called 'run'"),
        ([f"..={run}"], r"'\.\.' can be no adapter's name"),
        (["photos"], "'photos' is no adapter"),
    ):
        with pytest.raises(lc.UserError, match=message):
            name_adapters(given)
