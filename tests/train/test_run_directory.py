"""A run directory is data: whatever is changed in it, the numbers stay the same or the reading says so."""

import json
import os
import random
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import losa_cache as lc
from losa_cache.cli import app
from losa_cache.extract.extract import extract
from losa_cache.files import with_seal
from losa_cache.lock import lock, unlock
from losa_cache.sidenet.adapter_file import load_adapter, load_adapter_config
from losa_cache.train.checkpoint import restore
from losa_cache.train.loop import make_optimizer
from losa_cache.train.run import Run
from losa_cache.train.saved import new_adapter
from tests.conftest import results, tiny_backbone, tiny_samples

CPU = torch.device("cpu")
OPTIONS = {"rank": 2, "epochs": 2, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache, and a finished run of it that held out and weighed samples by files."""
    folder = tmp_path_factory.mktemp("trained")
    cache = extract(tiny_backbone(), tiny_samples(), precision="float32", out=folder / "c.zarr")
    (folder / "ids.txt").write_bytes(b"\xef\xbb\xbfimage-003\r\nimage-005\r\n\r\nimage-003\r\nimage-011\r\n")
    (folder / "weights.csv").write_text("id,weight\n" + "".join(f"image-{i:03d},{1 + i % 2}\n" for i in range(23)))
    files = {"val_ids": str(folder / "ids.txt"), "sampling": str(folder / "weights.csv")}
    run = lc.train(cache, out=folder / "run", **OPTIONS, **files).run
    return cache, run


@pytest.fixture(scope="module")
def another(trained, tmp_path_factory):
    """A run of the same cache and files at another rate."""
    cache, run = trained
    files = {"val_ids": str(run / "val_ids.txt"), "sampling": str(run / "sampling.csv")}
    return lc.train(cache, out=tmp_path_factory.mktemp("another") / "run", **OPTIONS | {"lr": 0.02}, **files).run


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


def everything(cache, path) -> dict:
    """What decides the numbers of a resumed run and of an evaluation, as it is read."""
    run = Run(path)
    config, origin = run.config()
    adapter_config = load_adapter_config(path)
    tail = lc.FrozenTail(cache.manifest.tail, cache.tail_tensors())
    state = run.load_checkpoint(CPU, at_most=10**7)
    fresh = new_adapter(cache.manifest, tail, config)
    restore(state, fresh, make_optimizer(fresh, config), epochs=config.epochs, steps=3)
    adapter, parts = load_adapter(path, adapter_config, tail), ("adapter", "layers", "tap", "start", "classes", "cache")
    return {
        "config": replace(config, sampling="", val_ids=""),
        "origin": origin,
        "adapter": {name: value.tolist() for name, value in adapter.trained_state().items()},
        "adapter config": {name: adapter_config[name] for name in parts},
        "checkpoint": {name: value.tolist() for name, value in fresh.trained_state().items()},
        "moments": str(state["optimizer"]["state"]),
        "epoch": state["epoch"],
        "metrics": results(path),
    }  # fmt: skip


FILES = [
    "config.json", "checkpoint.pt", "adapter/adapter.safetensors", "adapter/config.json", "metrics.jsonl",
    "sampling.csv", "val_ids.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_a_flipped_bit_is_found_or_changes_nothing(trained, run, name):
    cache, original = trained
    right, whole, draw = everything(cache, run), (run / name).read_bytes(), random.Random(name)
    found = 0
    for place in draw.sample(range(len(whole)), 25):
        shutil.rmtree(run)
        shutil.copytree(original, run)
        (run / name).write_bytes(bytes([*whole[:place], whole[place] ^ 1 << draw.randrange(8), *whole[place + 1 :]]))
        try:
            assert everything(cache, run) == right, place
        except lc.UserError as error:
            found += 1
            assert name in str(error)
    assert found >= (
        0 if name == "metrics.jsonl" else 20
    )  # a checkpoint has the metrics, too; white space says nothing


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_refused(trained, another, run, name):
    """Valid in itself, in the wrong place."""
    cache, _ = trained
    shutil.copy(another / name, run / name)
    if name in ("sampling.csv", "val_ids.txt"):
        (run / name).write_text("id,weight\n" if name == "sampling.csv" else "image-001\n")
    if name == "metrics.jsonl":
        assert everything(cache, run) == everything(cache, trained[1])
        return
    with pytest.raises(lc.UserError):
        lc.evaluate_run(run, cache=cache.path, device="cpu")
        lc.resume(run, device="cpu")


def without_digests(path) -> None:
    """Make a run one of an earlier version."""
    for name in ("config.json", "adapter/config.json"):
        content = json.loads((path / name).read_text())
        for new in ("seal", "files", "run", "sha256"):
            content.pop(new, None)
        (path / name).write_text(json.dumps(content, indent=2))
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    torch.save({name: state[name] for name in ("epoch", "passed", "adapter", "optimizer")}, path / "checkpoint.pt")


def test_runs_of_earlier_versions_load_to_the_same_numbers(trained, run):
    cache, original = trained
    right = everything(cache, original)
    without_digests(run)
    assert everything(cache, run) == right
    assert lc.evaluate_run(run, device="cpu")["samples"] == 3
    again = lc.resume(run, device="cpu")
    assert again.metrics["epoch"] == 2
    assert everything(cache, run) == right  # and what it has written since has digests


ADAPTER = "side.layers.0.down.weight"
CHECKPOINTS = {
    "an empty dictionary": (lambda s: s.clear(), "lacks epoch, passed, adapter, optimizer"),
    "no adapter": (lambda s: s["adapter"].clear(), r"lacks \d+ tensor"),
    "a tensor less": (lambda s: s["adapter"].pop(ADAPTER), f"lacks 1 tensor.*{ADAPTER}"),
    "a tensor more": (lambda s: s["adapter"].update(more=torch.zeros(1)), "more"),
    "another shape": (lambda s: s["adapter"].update({ADAPTER: torch.zeros(3, 32)}), rf"{ADAPTER} is \(3, 32\)"),
    "another dtype": (lambda s: s["adapter"].update({ADAPTER: torch.zeros(2, 32).half()}), "float16"),
    "a huge view": (lambda s: s["adapter"].update({ADAPTER: torch.zeros(1).expand(10**12)}), "1000000000000"),
    "no tensor": (lambda s: s["adapter"].update({ADAPTER: 3}), "not made of tensors"),
    "a value that is none": (lambda s: s["adapter"][ADAPTER][0].fill_(float("nan")), f"{ADAPTER} .*not finite"),
    "an infinite moment": (lambda s: s["optimizer"]["state"][1]["exp_avg"].fill_(float("inf")), "exp_avg .*not finite"),
    "no optimizer state": (lambda s: s["optimizer"]["state"].clear(), "lacks the state"),
    "some state": (lambda s: s["optimizer"]["state"].pop(1), "lacks the state"),
    "no moments": (lambda s: s["optimizer"]["state"][1].pop("exp_avg"), "exp_avg"),
    "another decay": (lambda s: s["optimizer"]["param_groups"][0].update(weight_decay=0.5), "weight_decay"),
    "a group less": (lambda s: s["optimizer"]["param_groups"].pop(), "groups"),
    "an optimizer that is a list": (lambda s: s.update(optimizer=[1]), "optimizer"),
    "an epoch that is text": (lambda s: s.update(epoch="1"), "Expected `int`"),
    "an epoch below 0": (lambda s: s.update(epoch=-1), "after epoch -1 of 2"),
    "an epoch beyond the last": (lambda s: s.update(epoch=3), "after epoch 3 of 2"),
    "a step beyond the last": (lambda s: s["passed"].update(steps=9), "after step 9 of 3"),
    "half a step": (lambda s: s["passed"].update(steps=0.5), "Expected `int`"),
    "a loss that is text": (lambda s: s["passed"].update(loss="0"), "loss"),
    "no loss": (lambda s: s["passed"].pop("loss"), "passed"),
    "a time that is none": (lambda s: s["passed"].update(seconds=float("nan")), "time"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_does_not_belong_to_the_run_is_refused(run, case):
    change, message = CHECKPOINTS[case]
    without_digests(run)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, run / "checkpoint.pt")
    with pytest.raises(lc.UserError, match=rf"checkpoint.pt' cannot be used: .*{message}") as refused:
        lc.resume(run, device="cpu")
    assert len(str(refused.value)) < 600


CONFIGS = {
    "an unknown option": ({"train": {"ranks": 3}}, r"train\.ranks is unknown"),
    "a rank that is text": ({"train": {"rank": "16"}}, r"rank"),
    "a rank below 0": ({"train": {"rank": -1}}, "rank is -1"),
    "a rank that is infinite": ({"train": {"rank": float("inf")}}, "rank"),
    "a huge rank": ({"train": {"rank": 10**30}}, "rank is 1"),
    "a rate that is text": ({"train": {"lr": "x"}}, "lr"),
    "a rate that is none": ({"train": {"lr": float("nan")}}, "lr is nan"),
    "an infinite rate": ({"train": {"lr": float("inf")}}, "lr is inf"),
    "an unknown side": ({"train": {"side": "lora"}}, "side network 'lora'"),
    "layers of text": ({"train": {"layers": ["x"]}}, "layers"),
    "too many epochs": ({"train": {"epochs": 1e30}}, "epochs"),
    "a seed below 0": ({"train": {"seed": -1}}, "seed is -1"),
    "a cache that is a number": ({"cache": 3}, "cache"),
    "online that is a list": ({"online": [1]}, "online"),
    "an online run of nothing": ({"online": {}}, "backbone"),
    "fields that are text": ({"fields": "x"}, "fields"),
    "more at the top": ({"trains": {}}, "trains is unknown"),
    "another file": ({"files": {"/etc/passwd": "sha256:0"}}, "/etc/passwd"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_one_is_refused(run, case):
    """Its seal holds: the schema refuses it."""
    change, message = CONFIGS[case]
    content = json.loads((run / "config.json").read_text())
    content.pop("seal")
    for name, value in change.items():
        content[name] = (
            content[name] | value if isinstance(value, dict) and isinstance(content.get(name), dict) else value
        )
    (run / "config.json").write_text(json.dumps(with_seal(content)))
    for use in (lambda: lc.resume(run, device="cpu"), lambda: lc.evaluate_run(run, device="cpu")):
        with pytest.raises(lc.UserError, match=rf"config\.json' is not as the run was begun: .*{message}"):
            use()


@pytest.mark.parametrize("name", ["train", "cache", "online", "fields"])
def test_a_config_that_lacks_a_part_is_refused(run, name):
    content = json.loads((run / "config.json").read_text())
    del content[name]
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(lc.UserError, match=f"it lacks {name}"):
        Run(run).config()


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null", "\ud800", '{"a": 1}'])
def test_text_that_is_no_config_is_refused(run, text):
    for name, read in (
        ("config.json", lambda: Run(run).config()),
        ("adapter/config.json", lambda: load_adapter_config(run)),
    ):
        (run / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(lc.UserError, match=name):
            read()
        (run / name).unlink()
        os.mkfifo(run / name)
        with pytest.raises(lc.UserError, match="named pipe"):
            read()


ADAPTERS = {
    "a huge width": ({"width": 10**9}, "width"),
    "a width that the cache does not have": ({"width": 2**24}, "width"),
    "a rank that the file does not have": ({"rank": 30}, r"side\.layers\.0\.\w+\.\w+ is \(.*by its config"),
    "a huge depth": ({"depth": 10**9}, "depth"),
    "a depth of other layers": ({"depth": 3}, "depth is 3 of 4 layers"),
    "a rank that is text": ({"rank": "2"}, "rank"),
    "a side that is unknown": ({"side": "lora"}, "lora"),
    "other classes": ({"classes": 7}, "counts 7 classes and names 3"),
    "a grid of nothing": ({"grid": []}, "grid"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapters_config_is_held_to_its_tensors(trained, run, case):
    change, message = ADAPTERS[case]
    without_digests(run)
    content = json.loads((run / "adapter/config.json").read_text())
    content["adapter"] |= change
    (run / "adapter/config.json").write_text(json.dumps(content))
    with pytest.raises(lc.UserError, match=message):
        lc.evaluate_run(run, cache=trained[0].path, device="cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_adapter_that_is_not_finite_is_refused(trained, run, value):
    without_digests(run)
    tensors = load_file(run / "adapter/adapter.safetensors")
    tensors[ADAPTER][1, 2] = value
    save_file(tensors, run / "adapter/adapter.safetensors")
    with pytest.raises(lc.UserError, match=f"{ADAPTER} holds values that are not finite"):
        lc.evaluate_run(run, cache=trained[0].path, device="cpu")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"{}", b"PK\x03\x04" * 9]
)
def test_tensors_that_are_none_are_refused(trained, run, content):
    without_digests(run)
    (run / "adapter/adapter.safetensors").write_bytes(content)
    with pytest.raises(lc.UserError, match=r"adapter\.safetensors' cannot be loaded"):
        lc.evaluate_run(run, cache=trained[0].path, device="cpu")


def test_one_process_at_a_time_trains_a_run_and_others_may_evaluate_it(trained, run):
    handle = lock(run / "config.json")
    with pytest.raises(lc.UserError, match="another process trains"):
        lc.resume(run, device="cpu")
    assert lc.evaluate_run(run, device="cpu")["samples"] == 3
    unlock(handle)
    lc.resume(run, device="cpu")


def test_a_directory_appears_with_its_config_and_is_nobody_elses(trained, tmp_path):
    cache, _ = trained
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(lc.UserError, match="exists"):
            lc.train(cache, out=tmp_path / name, **OPTIONS)
    with pytest.raises(lc.UserError, match="cannot be made"):
        lc.train(cache, out=tmp_path / "file" / "run", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "link"]


def test_a_run_whose_cache_moved_or_is_another_now_says_so(tmp_path, caplog):
    cache = extract(tiny_backbone(), tiny_samples(), precision="float32", out=tmp_path / "c.zarr")
    run = lc.train(cache, out=tmp_path / "run", **OPTIONS).run
    for suffix in ("", ".receipts"):
        (tmp_path / f"c.zarr{suffix}").rename(tmp_path / f"moved.zarr{suffix}")
    with pytest.raises(
        lc.UserError,
        match=r"cache '.*c\.zarr', from which run .* learns, cannot be opened.*put it back, or a symbolic link",
    ):
        lc.resume(run, device="cpu")
    (tmp_path / "elsewhere").mkdir()
    moved = lc.move_cache(tmp_path / "moved.zarr", tmp_path / "elsewhere")  # now the list of caches knows it
    assert lc.resume(run, device="cpu").samples == {"train": 21, "held_out": 2}
    assert f"the one at {str(moved.path)!r}, of the same content, is used" in caplog.text
    renamed = replace(tiny_samples(), classes=("a", "c", "d"))
    other = extract(tiny_backbone(), renamed, precision="float32", out=tmp_path / "other.zarr")
    with pytest.raises(lc.UserError, match=r"does not fit .*classes \(the run knows no 'd'\)"):
        lc.evaluate_run(run, cache=other.path, device="cpu")


@pytest.mark.parametrize(
    "name", ["epochs", "lr", "weight_decay", "rank", "warmup", "label_smoothing", "seed", "batch_size"]
)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, 10**40, "3", True])
def test_options_beyond_sense_are_refused(name, value):
    with pytest.raises(lc.UserError, match=f"{name.replace('_', '-')} is "):
        lc.TrainConfig(**{name: value})


@pytest.mark.parametrize("option", ["val_ids", "sampling"])
def test_lists_are_files_of_bounded_size(trained, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "named pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(lc.UserError, match=message):
            lc.train(trained[0], out=tmp_path / "run", **OPTIONS, **{option: str(path)})


def test_labels_beyond_the_classes_are_refused(tmp_path):
    with pytest.raises(lc.UserError, match="labels from 0 to 3, but 3 classes"):
        replace(tiny_samples(), labels=np.arange(23, dtype=np.int64) % 4)


@pytest.mark.parametrize("begin", [lc.train, lc.train_auto, lc.probe])
def test_a_place_that_cannot_be_made_is_refused_before_a_cache_is_opened(begin, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(lc.UserError, match=r"file' is no folder"):
        begin(tmp_path / "missing.zarr", out=tmp_path / "file" / "out")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(lc.UserError, match=r"runs' is no folder"):
        begin(tmp_path / "missing.zarr")


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_compared(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(lc.UserError, match=r"file' is no folder"):
        app(["compare", str(tmp_path / "empty"), "--out", str(tmp_path / "file")], standalone_mode=False)
