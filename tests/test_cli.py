"""The command line as a user meets it."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from losa_cache.cli import main
from tests.conftest import losa_cache


@pytest.mark.slow
def test_the_whole_road(digits, tmp_path):
    common = {"home": digits["home"], "cwd": tmp_path}
    again = losa_cache(
        "extract", "--backbone", "vit_digits", "--dataset", "digits", "--out", str(digits["train"]), "--json", **common
    )
    assert json.loads(again.stdout)["extracted_now"] == 0
    trained = losa_cache("train", "--rank", "8", "--epochs", "3", "--json", **common)
    assert trained.returncode == 0, trained.stderr
    assert f"{digits['train']} (the most recent complete one)" in trained.stderr
    run = json.loads(trained.stdout)["run"]
    assert run == "runs/digits-losa-1"
    evaluated = json.loads(losa_cache("eval", run, "--json", **common).stdout)
    assert (evaluated["split"], evaluated["samples"]) == ("test", 448)
    assert evaluated["top1"] > 50
    plain = losa_cache("inspect", str(digits["train"]), **common).stdout
    assert "complete" in plain
    inspected = json.loads(losa_cache("inspect", str(digits["train"]), "--json", **common).stdout)
    assert inspected["shape"] == [448, 8, 65, 96]
    assert sum(inspected["classes"].values()) == 448
    assert inspected["bytes"]["stored"] >= 448 * 8 * 65 * 96 * 2
    assert inspected["health"]["complete"] is True


BAD = {
    "unknown backbone": ("extract --backbone vit_digit --dataset digits", "nearest: vit_digits"),
    "unknown data set": ("extract --backbone vit_digits --dataset digit", "nearest: digits"),
    "no folder": ("extract --backbone vit_digits --dataset folder --data-dir nowhere", "there is no folder 'nowhere'"),
    "folder without a place": ("extract --backbone vit_digits --dataset folder", "needs --data-dir"),
    "empty folder": ("extract --backbone vit_digits --dataset folder --data-dir .", "no class folders with images"),
    "no split": ("extract --backbone vit_digits --dataset digits --split val", "choose one of train, test"),
    "no weights": ("extract --backbone vit_e --dataset digits", "--weights FILE"),
    "no weights file": ("extract --backbone vit_digits --dataset digits --weights w.pth", "no weights file 'w.pth'"),
    "precision": ("extract --backbone vit_digits --dataset digits --precision int3", "choose one of float32"),
    "tap": ("extract --backbone vit_digits --dataset digits --tap query", "choose one of block, attention, mlp, both"),
    "tap of a cache": ("train --tap mlp", "without --online or --mixed a cache serves the images it has"),
    "unknown tap online": ("train --online --backbone vit_digits --dataset digits --tap query", "unknown tap 'query'"),
    "start": ("train --start middle", "choose one of output, embedding"),
    "no cache": ("train", "no complete training cache yet"),
    "no cache there": ("train --cache nowhere.zarr", "there is no cache at 'nowhere.zarr'"),
    "side": ("train --side lora", "choose one of losa, ladder, mlp, fusion, res_tuning, attentive, linear"),
    "augmentation of a cache": ("train --augment crop", "without --online or --mixed a cache serves the images it has"),
    "method and a cache": ("train --method full", "--method full trains inside the backbone, which a cache cannot"),
    "method and a side network": ("train --online --method full --side losa", "--method full says what is trained"),
    "method and a head": ("train --online --method full --head all", "whose last output a classifier reads: leave out"),
    "method and a share": ("train --online --method full --mixed 0.5", "cache cannot replace: leave out --mixed"),
    "method and a search": (
        "train --method full --auto",
        "--auto chooses from a cache, and --method full trains inside",
    ),
    "method of a sweep": ("sweep --method full --rank 2,4", "sweep has no option '--method', which is one of train"),
    "rank of no rank": ("train --online --method bitfit --rank 4", "method 'bitfit' has no inner width"),
    "online without images": ("train --online --dataset digits", "name them with --backbone and --dataset"),
    "online and mixed": ("train --online --mixed 0.5", "leave one of --online and --mixed 0.5 out"),
    "unknown augmentation": (
        "train --online --backbone vit_digits --dataset digits --augment rnd-m9",
        "timm does not know the augmentation 'rnd-m9'",
    ),
    "share": ("train --mixed 1.5 --backbone vit_digits --dataset digits", "mixed is 1.5"),
    "erasing": ("train --online --backbone vit_digits --dataset digits --reprob 2", "reprob is 2.0"),
    "mixed without a cache": ("train --mixed 0.5 --backbone vit_digits --dataset digits", "no complete training cache"),
    "no views": ("extract --backbone vit_digits --dataset digits --views 0", "views is 0"),
    "views of nothing": ("extract --backbone vit_digits --dataset digits --views 4", "say with --augment how"),
    "augmentation of one view": (
        "extract --backbone vit_digits --dataset digits --augment crop",
        "ask for --views of at least 2",
    ),
    "unknown views": (
        "extract --backbone vit_digits --dataset digits --views 4 --augment rnd-m9",
        "timm does not know the augmentation 'rnd-m9'",
    ),
    "no run": ("eval nowhere", "'nowhere' holds no adapter"),
    "no run to resume": ("train --resume nowhere", "'nowhere' is no run directory"),
    "resume with options": ("train --resume nowhere --rank 4", "leave out --rank"),
    "inspect nothing": ("inspect nowhere.zarr", "there is no cache at"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    command, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["losa-cache", *command.split()])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not printed.out


def test_an_unreadable_image_is_named_or_skipped(tmp_path):
    for kind in ("ant", "bee"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "set" / kind / "good.png")
    good = (tmp_path / "set/ant/good.png").read_bytes()
    (tmp_path / "set/bee/torn.png").write_bytes(good[: len(good) // 2])
    command = [
        "extract",
        "--backbone",
        "vit_digits",
        "--dataset",
        str(tmp_path / "set"),
        "--out",
        str(tmp_path / "c.zarr"),
    ]
    stopped = losa_cache(*command, home=tmp_path)
    assert stopped.returncode == 2
    assert "'bee/torn.png' does not decode" in stopped.stderr
    skipped = losa_cache(*command, "--on-error", "skip", "--json", home=tmp_path)
    assert json.loads(skipped.stdout)["skipped"] == 1
    assert "bee/torn.png" in skipped.stderr


def test_an_incomplete_cache_is_refused(tmp_path, digits):
    shutil.copytree(digits["train"], tmp_path / "c.zarr")
    attributes = tmp_path / "c.zarr" / "zarr.json"
    attributes.write_text(attributes.read_text().replace('"complete": true', '"complete": false'))
    done = losa_cache("train", "--cache", str(tmp_path / "c.zarr"), cwd=tmp_path)
    assert done.returncode == 2
    assert "is incomplete: run the same losa-cache extract again" in done.stderr


@pytest.mark.slow
def test_a_machine_that_gives_no_more_threads_is_one_sentence():
    code = """if True:
        import resource, sys, threading
        def start(self):
            raise RuntimeError("can't start new thread")  # as CPython says it
        threading.Thread.start = start
        from losa_cache.__main__ import main
        sys.argv[1:] = ["extract", "--backbone", "vit_digits", "--dataset", "digits", "--limit", "8", "--workers", "2"]
        main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the machine gives no more threads: raise the limit")


def test_memory_that_does_not_hold_the_libraries_is_one_sentence(tmp_path):
    limited = f"ulimit -v 1500000; exec {shlex.quote(sys.executable)} -m losa_cache probe ."
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "error: the machine ran out of memory: close other programs, or ask for less at a time."
    ]
