"""The examples run on the embedded default, and say what they should."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.cli import app

EXAMPLES = Path(__file__).parent.parent / "examples"
ACCURACY = re.compile(r"accuracy: ([\d.]+) %")


@pytest.mark.slow  # CI has a limit of time
def test_every_example_runs(digits_home, digits, capsys):
    said = {}
    for example in sorted(EXAMPLES.glob("*.py")):
        if example.name == "onnx_run.py":
            said[example.name] = of_an_export(example, digits)
        elif example.name == "read_with_zarr.py":
            said[example.name] = without(["losa_cache"], example, digits["train"])
        else:
            runpy.run_path(str(example), run_name="__main__")
            said[example.name] = capsys.readouterr().out
    assert len(said) == 6
    accuracies = {name: float(ACCURACY.findall(text)[-1]) for name, text in said.items() if ACCURACY.search(text)}
    assert accuracies.keys() == said.keys() - {"compare_side_networks.py", "onnx_run.py"}
    assert min(accuracies.values()) > 75, accuracies  # of two and five classes
    assert re.search(r"best: .*, (9\d|100)\.\d %, 95 % interval", said["compare_side_networks.py"])
    assert said["sweep.py"].count("validation accuracy") == 4


def of_an_export(example, digits):
    """Export a run by the command line, and hold what the example says of test images to losa-cache's own answers."""
    run = lc.train(digits["train"], head="last", epochs=3, device="cpu").run
    done = CliRunner().invoke(app, ["export", str(run), "--out", "digits.onnx"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "takes       pixels: uint8 (batch, 3, 16, 16)" in done.stdout
    samples, adapter = lc.load_samples("digits", split="test"), lc.load_adapter(run, device="cpu")
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        samples.load(number).save(name)
    backbone = lc.load_backbone("vit_digits")
    pixels = torch.stack([backbone.input.transform()(samples.load(number)) for number in range(8)])
    with torch.inference_mode():
        logits = adapter(backbone.outputs(pixels, adapter.points, compute=torch.float32))
    shares, numbers = logits.softmax(1).max(1)
    wanted = [
        f"{name}: {adapter.classes[number]} ({100 * share:.1f} %)"
        for name, share, number in zip(names, shares.tolist(), numbers.tolist(), strict=True)
    ]
    said = without(["losa_cache", "torch", "torchvision", "timm"], example, "digits.onnx", *names)
    assert said.splitlines() == wanted
    return said


def without(packages, example, *arguments):
    """Run it in an interpreter that cannot import these packages."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({packages})); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_examples_are_short():
    for example in EXAMPLES.glob("*.py"):
        assert len(example.read_text().splitlines()) <= 42, example.name
