"""Runs beside each other: what is compared, what is kept, what is refused, what is shown."""

import json
import shutil

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.cache.store import open_cache
from losa_cache.cli import app
from losa_cache.compare.report import write_report
from losa_cache.compare.table import text
from losa_cache.extract.extract import extract
from losa_cache.sidenet.adapter_file import load_adapter, load_adapter_config
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import CLASS, TargetSet
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples
from tests.sweep.test_report import Page

OPTIONS = {"epochs": 2, "batch_size": 8, "lr": 0.05, "device": "cpu"}
NAMED = "<b>&$\\frac{1$"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A training cache, a test cache, and runs: two seeds of one setting, another rank, a probe."""
    folder = tmp_path_factory.mktemp("made")
    train = extract(tiny_backbone(), tiny_samples(), precision="float32", out=folder / "train.zarr")
    extract(tiny_backbone(), tiny_samples(40, split="test"), precision="float32", out=folder / "test.zarr")
    for name, own in {"a0": {}, "a1": {"seed": 1}, "b": {"rank": 4}, "c": {"side": "linear"}}.items():
        lc.train(train, out=folder / name, **{"rank": 2, **OPTIONS, **own})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def by_hand(run, cache):
    """Whether each image is right, by its id: every block read, the adapter called, one image at a time."""
    config = load_adapter_config(run)
    adapter = load_adapter(run, config, frozen_tail(cache)).eval()
    values = zarr.open_group(cache.path, mode="r")["activations/block"][:]
    layers = [cache.manifest.layers.index(layer) for layer in config["layers"]]
    found = {}
    for row, name in enumerate(cache.ids):
        with torch.no_grad():
            logits = adapter([torch.from_numpy(values[row : row + 1, layer]) for layer in layers])
        found[name] = int(logits.argmax()) == int(cache.labels[row])
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("few_values_of_c")
def test_what_is_kept_of_a_target_set_is_forgotten_with_it(folder, tmp_path):
    train, test = (open_cache(folder / f"{name}.zarr") for name in ("train", "test"))
    halves = [(np.arange(len(cache.samples)) % 3 > 0).astype(np.int64) for cache in (train, test)]
    for cache, values in zip((train, test), halves, strict=True):
        add_targets(cache, TargetSet("half", CLASS, ["x", "y"], values))
    run = lc.train(train.path, out=tmp_path / "run", targets="half", rank=2, head="last", **OPTIONS | {"epochs": 1}).run
    found = lc.compare(run, folder / "test.zarr", device="cpu").methods[0].top1
    assert found == pytest.approx(lc.evaluate_run(run, cache=test.path, device="cpu")["top1"])
    add_targets(test, TargetSet("half", CLASS, ["x", "y"], 1 - halves[1]))
    again = lc.compare(run, folder / "test.zarr", device="cpu").methods[0].top1
    assert again == pytest.approx(100 - found) and found != 50


def test_methods_are_settings_and_pairs_are_by_image(folder):
    test = open_cache(folder / "test.zarr")
    found = lc.compare(folder / "a0", folder / "b", folder / "a1", folder / "c", test)
    methods = {method.name: method for method in found.methods}
    assert methods.keys() == {"losa, rank 2", "losa, rank 4", "linear"}
    assert methods["losa, rank 2"].seeds == [0, 1]
    assert sorted(method.top1 for method in found.methods) == [method.top1 for method in found.methods][::-1]
    right = {name: by_hand(folder / name, test) for name in ("a0", "a1", "b")}
    ids = sorted(right["b"])
    hits = {name: np.array([own[one] for one in ids]) for name, own in right.items()}
    assert methods["losa, rank 2"].each == pytest.approx([100 * hits[name].mean() for name in ("a0", "a1")])
    assert methods["losa, rank 4"].top1 == pytest.approx(lc.evaluate_run(folder / "b", cache=test.path)["top1"])
    gaps = (hits["a0"].astype(float) + hits["a1"]) / 2 - hits["b"]
    (pair,) = (one for one in found.pairs if {one.first, one.second} == {"losa, rank 2", "losa, rank 4"})
    assert abs(pair.difference) == pytest.approx(abs(100 * gaps.mean()))
    assert pair.standard_error == pytest.approx(100 * gaps.std(ddof=1) / np.sqrt(len(ids)))
    stored = load_file(folder / "b" / "adapter/adapter.safetensors")
    assert sum(methods["losa, rank 4"].parameters.values()) == sum(tensor.numel() for tensor in stored.values())
    assert methods["linear"].train_seconds > 0
    assert json.loads(json.dumps(found.to_json()))["samples"] == 40


def test_what_was_predicted_is_kept_until_it_no_longer_holds(folder, caplog):
    first = lc.compare(folder / "a0", folder / "test.zarr")
    for shard in (folder / "test.zarr" / "activations" / "block").glob("c.*"):
        shard.write_bytes(b"")  # nothing can be evaluated now
    assert lc.compare(folder / "a0", folder / "test.zarr") == first
    shutil.copy(folder / "a0" / "predictions.json", folder / "a1" / "predictions.json")
    with pytest.raises(lc.UserError):
        lc.compare(folder / "a1", folder / "test.zarr")
    kept = folder / "a0" / "predictions.json"
    kept.write_bytes(kept.read_bytes().replace(b'"predicted":[', b'"predicted":[1,', 1))
    with pytest.raises(lc.UserError):
        lc.compare(folder / "a0", folder / "test.zarr")
    assert "altered" in caplog.text


def test_the_order_of_a_cache_does_not_count_and_other_images_are_refused(folder):
    source = {"precision": "float32", "seed": 5}
    turned = extract(tiny_backbone(), tiny_samples(40, split="test"), out=folder / "turned.zarr", **source)
    fewer = extract(tiny_backbone(), tiny_samples(39, split="test"), out=folder / "fewer.zarr", **source)
    assert turned.ids != open_cache(folder / "test.zarr").ids
    straight = lc.compare(folder / "a0", folder / "b", folder / "test.zarr")
    other = lc.compare(folder / "a0", folder / "b", turned)
    assert [method.each for method in other.methods] == [method.each for method in straight.methods]
    assert [pair.standard_error for pair in other.pairs] == [pair.standard_error for pair in straight.pairs]
    lc.compare(folder / "b", fewer)
    with pytest.raises(lc.UserError, match=r"there is nothing to compare"):
        lc.compare(fewer)
    with pytest.raises(lc.UserError, match=r"there is neither a run nor a cache at '.*nothing'"):
        lc.compare(folder / "nothing")
    with pytest.raises(lc.UserError, match=r"have the same options and the same seed 0"):
        lc.compare(folder / "a0", folder / "a0", turned)


def test_images_that_were_trained_on_and_a_single_image_are_refused(folder):
    lc.train(folder / "test.zarr", out=folder / "on_test", rank=2, **OPTIONS)
    with pytest.raises(lc.UserError, match=r"on_test' does not fit cache .*: it was trained on these images"):
        lc.compare(folder / "on_test", folder / "test.zarr")
    single = extract(tiny_backbone(), tiny_samples(1, split="val"), precision="float32", out=folder / "single.zarr")
    with pytest.raises(lc.UserError, match=r"single.zarr' has one image"):
        lc.compare(folder / "a0", folder / "b", single)
    alone = lc.compare(folder / "a0", single)
    assert alone.samples == 1
    assert str(single.path) in text(alone)


def test_online_runs_and_cached_ones_meet(folder):
    online = lc.OnlineConfig("tiny0", "tiny", precision="float32")
    given = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    lc.train(online=online, out=folder / "online", rank=2, **OPTIONS, **given)
    found = lc.compare(folder / "a0", folder / "online", folder / "test.zarr")
    methods = {method.name: method for method in found.methods}
    assert methods.keys() == {"losa", "losa, online"}
    assert methods["losa, online"].extract_seconds == 0
    assert methods["losa"].extract_seconds is None or methods["losa"].extract_seconds > 0


def test_a_report_escapes_names(folder, tmp_path):
    strange = folder / NAMED
    (folder / "b").rename(strange)
    found = lc.compare(folder / "a0", strange, folder / "test.zarr")
    page = Page(write_report(found, tmp_path / "report").read_text("utf-8"))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert any(NAMED in told for told in page.text["p"])
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"compare.html", "compare.png", "compare.json"}
    lines = text(found).splitlines()
    assert len({len(line) for line in lines[2:5]}) == 1  # head and two methods, aligned


@pytest.mark.usefixtures("few_values_of_c")
def test_the_command_finds_what_was_trained_from_a_cache_and_probes_it_once(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    for name in ("a0", "c"):
        (folder / name).rename(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    app(["compare", str(folder / "train.zarr"), str(folder / "test.zarr"), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    (probed,) = tmp_path.glob("runs/*/probe.json")
    runs = {method["runs"][0] for method in found["methods"]}
    assert runs == {"runs/a0", "runs/c", f"runs/{probed.parent.name}"}
    record = json.loads(probed.read_text())
    lines = {line_name(line): line for line in record["lines"]}
    methods = {method["name"]: method for method in found["methods"]}
    for name, line in {"last layer": "last_layer", "all layers": "all_layers"}.items():
        assert methods[f"probe, {name}"]["top1"] == pytest.approx(lines[record[line]]["test_top1"])
    trained = methods["probe, all layers"]["parameters"]["classifier"]
    assert trained == 3 * (lines[record["all_layers"]]["features"] + 1)
    again = lc.compare("runs/a0", "runs/c", *[folder / "train.zarr"] * 2, folder / "test.zarr", probe=True)
    assert again.to_json() == found
    assert len(list(tmp_path.glob("runs/*/probe.json"))) == 1


def line_name(line):
    return f"{line['method']}, {line['reads']}" + ("" if line["rows"] == "features" else f", {line['rows']}")
