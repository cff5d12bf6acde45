"""The command line on a GPU, on the embedded default: extract, train, resume, eval, sweep."""

import json

import pytest
import torch
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.cli import main
from tests.conftest import results
from tests.train.test_train import Stop, stop_after

pytestmark = pytest.mark.cuda


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command, which must succeed, and give what it prints as JSON."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr("sys.argv", ["losa-cache", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return json.loads(said.out)

    return command


@pytest.fixture
def caches(run, tmp_path):
    """Both splits of the digits, in the precision that is asked for."""

    def extract(*options):
        digits = ["--backbone", "vit_digits", "--dataset", "digits", *options]
        return [run("extract", *digits, "--split", split, "--out", f"{split}.zarr") for split in ("train", "test")]

    return extract


@pytest.mark.parametrize(("options", "floor"), [([], 93), (["--precision", "float32"], 93), (["--bits", "2"], 92)])
def test_digits_are_learnt(options, floor, caches, run):
    caches(*options)
    common = ["--cache", "train.zarr", "--epochs", "20", "--val-fraction", "0"]
    trained = run("train", "--rank", "16", *common, "--out", "losa")
    probe = run("train", "--side", "linear", *common, "--out", "linear")
    assert trained["run"] == "losa"
    assert probe["parameters"]["side"] == 0
    assert run("eval", "losa", "--cache", "test.zarr")["top1"] > floor
    assert run("eval", "linear", "--cache", "test.zarr")["top1"] > floor - 4


def test_online_training_learns_them_too(caches, run):
    caches()
    digits = ["--backbone", "vit_digits", "--dataset", "digits", "--rank", "8", "--epochs", "6", "--lr", "3e-3"]
    run("train", "--online", *digits, "--val-fraction", "0", "--out", "online")
    run("train", "--mixed", "0.25", *digits, "--cache", "train.zarr", "--val-fraction", "0", "--out", "mixed")
    for name in ("online", "mixed"):
        assert run("eval", name, "--cache", "test.zarr")["top1"] > 85


@pytest.mark.parametrize("residency", ["device", "memory", "disk"])
def test_a_stopped_run_resumes_bit_identically(residency, caches, run, tmp_path):
    caches("--limit", "100")
    options = {"rank": 4, "epochs": 3, "batch_size": 32, "residency": residency, "device": "cuda"}
    lc.train("train.zarr", out="whole", **options)
    with pytest.raises(Stop):
        lc.train("train.zarr", out="stopped", report=stop_after(2), **options)
    run("train", "--resume", "stopped", "--residency", residency)
    whole, stopped = (load_file(tmp_path / name / "adapter/adapter.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


def test_a_sweep_finds_a_run_that_the_printed_command_repeats(caches, run):
    caches()
    searched = ["--rank", "4,8", "--lr", "1e-3,3e-3", "--epochs", "6", "--val-fraction", "0.2"]
    found = run("sweep", "--cache", "train.zarr", "--test-cache", "test.zarr", *searched, "--out", "sweep")
    assert found["trials"] == 4
    assert found["val_top1"] > 85
    alone = run(*found["command"].split()[1:])
    assert alone["val_top1"] == pytest.approx(found["val_top1"], abs=2)
