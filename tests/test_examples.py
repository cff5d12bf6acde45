"""The examples run on the embedded default, and say what they should."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import open_cache
from losa_cache.extract.plan import cache_name

EXAMPLES = Path(__file__).parent.parent / "examples"
ACCURACY = re.compile(r"accuracy: ([\d.]+) %")


@pytest.fixture
def home(digits, tmp_path, monkeypatch):
    """A home that holds both caches of the embedded default already, and a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    caches = tmp_path / "home" / "caches"
    caches.mkdir(parents=True)
    for split in ("train", "test"):
        there = caches / cache_name(open_cache(digits[split]).manifest)
        there.symlink_to(digits[split])
        receipts_of(there).symlink_to(receipts_of(digits[split]))


def test_every_example_runs(home, digits, capsys):
    said = {}
    for example in sorted(EXAMPLES.glob("*.py")):
        if example.name == "read_with_zarr.py":
            said[example.name] = without_losa_cache(example, digits["train"])
        else:
            runpy.run_path(str(example), run_name="__main__")
            said[example.name] = capsys.readouterr().out
    assert len(said) == 5
    accuracies = {name: float(ACCURACY.findall(text)[-1]) for name, text in said.items() if ACCURACY.search(text)}
    assert accuracies.keys() == said.keys() - {"compare_side_networks.py"}
    assert min(accuracies.values()) > 75, accuracies  # of two and five classes
    assert re.search(r"best: .*, (9\d|100)\.\d %, 95 % interval", said["compare_side_networks.py"])
    assert said["sweep.py"].count("validation accuracy") == 4


def without_losa_cache(example, cache):
    """Run it in an interpreter that cannot import losa_cache."""
    code = (
        "import runpy, sys; sys.modules['losa_cache'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(example), str(cache)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_examples_are_short():
    for example in EXAMPLES.glob("*.py"):
        assert len(example.read_text().splitlines()) <= 42, example.name
