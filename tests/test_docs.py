"""What the pages say runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command

import losa_cache as lc
from losa_cache.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert float(capsys.readouterr().out) > 80
    blocks = [torch.zeros(2, 197, 768)] * 12
    assert names["side"](blocks).shape == (2, 197, 768)


def test_the_protocols_python_runs(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache.zarr").symlink_to(digits["train"])
    plain, int8 = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(plain, names)
    assert names["blocks"].shape == (8, 8, 65, 96)
    expected = names["blocks"].float()
    (tmp_path / "cache.zarr").unlink()
    lc.extract("vit_digits", "digits", precision="int8", limit=8, out="cache.zarr")
    exec(plain.splitlines()[3] + "\n" + int8, names)
    assert names["blocks"].shape == (8, 8, 65, 96)
    for layer in range(8):
        assert (names["blocks"] - expected)[:, layer].norm() < 0.015 * expected[:, layer].norm()


def commands():
    text = README + (ROOT / "scripts" / "quickstart.py").read_text()
    for line in re.findall(r"^ *(losa-cache [^\n`]*)", text, flags=re.MULTILINE):
        for part in line.split(" && "):
            yield part.split("#")[0].split("\\n")[0].strip()


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_shown_is_one_that_parses(command):
    _, verb, *arguments = shlex.split(command)
    get_command(app).commands[verb].make_context(verb, arguments, resilient_parsing=False)


def test_every_option_named_in_the_readme_exists():
    known = {name for verb in get_command(app).commands.values() for p in verb.params for name in p.opts}
    named = set(re.findall(r"`(--[\w-]+)", README))
    assert named
    assert named <= known | {"--help"}


def test_every_public_name_is_there_and_documented():
    for name in lc.__all__:
        assert getattr(lc, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lc.nonsense  # noqa: B018


def test_rooms_do_not_hide_the_functions_of_their_names():
    import losa_cache.extract.plan
    import losa_cache.train.loop  # noqa: F401

    assert callable(lc.extract)
    assert callable(lc.train)
