"""Where this user's files go: homes that cannot be, notes that are none, and paths by whatever name."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from losa_cache.cache.inspect import list_caches
from losa_cache.cache.registry import known_stores
from losa_cache.cache.store import latest_training_cache, open_cache
from losa_cache.cli import main
from losa_cache.cli_common import expanded
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.folders import given_path, settled_path
from losa_cache.train.train import train
from tests.conftest import tiny_backbone, tiny_samples

FULL = """
import sys
sys.path.insert(0, {root!r})
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.extract.extract import extract
print(extract(tiny_backbone(), tiny_samples(), out={out!r}).manifest.complete)
"""


def home_of(kind, tmp_path):
    """Make a home that cannot be written."""
    if kind == "a file":
        (tmp_path / "file").write_text("")
        return tmp_path / "file"
    if kind == "below a file":
        (tmp_path / "file").write_text("")
        return tmp_path / "file" / "below"
    if kind == "no file system for it":
        return Path("/proc/losa-cache")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path / "loop"


@pytest.mark.parametrize("kind", ["a file", "below a file", "no file system for it", "a loop"])
def test_a_home_that_cannot_be_written_costs_a_warning(kind, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LOSA_CACHE_HOME", str(home_of(kind, tmp_path)))
    for _ in range(2):  # made, and reused
        caplog.clear()
        made = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr")
        assert made.manifest.complete
        (warning,) = [own.getMessage() for own in caplog.records if own.levelno >= logging.WARNING]
        assert f"{made.path} is complete, but not listed" in warning
    assert train(made.path, epochs=1, out=tmp_path / "run").metrics["epoch"] == 1
    assert known_stores() == list_caches() == []
    with pytest.raises(UserError, match="no complete training cache yet"):
        latest_training_cache()
    with pytest.raises(UserError):
        extract(tiny_backbone(), tiny_samples())


def test_a_user_without_a_home_folder_can_work_by_names(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("LOSA_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    assert extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr").manifest.complete
    assert "not listed: this user has no home folder" in caplog.text
    for work in (list_caches, lambda: extract(tiny_backbone(), tiny_samples()), lambda: given_path("~/c.zarr")):
        with pytest.raises(UserError, match="home folder"):
            work()


@pytest.mark.slow
def test_a_home_on_a_full_disk_costs_a_warning(tmp_path):
    home, out = tmp_path / "home", str(tmp_path / "c.zarr")
    home.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=4k,nr_inodes=2 none {home}"
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("namespaces are forbidden here")
    code = FULL.format(root=os.getcwd(), out=out)
    environment = os.environ | {"LOSA_CACHE_HOME": str(home), "CODE": code}
    command = [*unshare, "sh", "-c", f'{mount} && exec {sys.executable} -c "$CODE"']
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "True\n", done.stderr
    assert "is complete, but not listed" in done.stderr


def test_names_that_are_not_utf_8_are_remembered(tmp_path, monkeypatch):
    odd = os.fsdecode(b"caf\xe9")
    monkeypatch.setenv("LOSA_CACHE_HOME", str(tmp_path / odd / "home"))
    made = extract(tiny_backbone(), tiny_samples(), out=tmp_path / odd / "c.zarr")
    assert known_stores() == [made.path]
    assert list_caches()[0]["rows"] == 23
    assert extract(tiny_backbone(), tiny_samples()).path.parent == tmp_path / odd / "home" / "caches"


def test_damaged_notes_are_skipped_and_named(tmp_path, monkeypatch, caplog, capsys):
    made = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr")
    notes = tmp_path / "home" / "known"
    texts = {
        "torn": '{"path"',
        "list": "[]",
        "none": "{}",
        "number": '{"path": 5}',
        "null": '{"path": null}',
        "deep": "[" * 100_000,
        "bytes": "\udcff\udcfe",
        "zero": '{"path": "\\u0000"}',
        "long": json.dumps({"path": "/" + "x" * 5000}),
        "huge": '{"path": "/", "identity": ' + "9" * 5000 + "}",
    }
    for name, text in texts.items():
        (notes / f"{name}.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (notes / "folder.json").mkdir()
    os.mkfifo(notes / "pipe.json")
    (notes / "link.json").symlink_to("nowhere")
    (notes / "device.json").symlink_to("/dev/zero")
    assert [entry["path"] for entry in list_caches()] == [str(made.path)]
    assert latest_training_cache().path == made.path
    named = {name for name in (*texts, "folder", "pipe", "link", "device") if f"{notes}/{name}.json" in caplog.text}
    assert named == {*texts, "folder", "pipe", "link", "device"} - {"zero", "long"}  # these name what is not there
    monkeypatch.setattr(sys, "argv", ["losa-cache", "list"])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "c.zarr" in capsys.readouterr().out


def test_a_path_may_begin_with_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = extract(tiny_backbone(), tiny_samples(), out="~/c.zarr")
    assert made.path == tmp_path / "c.zarr"
    assert open_cache("~/c.zarr").ids == made.ids
    assert not (tmp_path / "~").exists()
    assert expanded("~/photos") == str(tmp_path / "photos")
    assert expanded(Path("~/photos")) == tmp_path / "photos"
    for other in ("pretrained", "s3://bucket/~x", None):
        assert expanded(other) == other
    with pytest.raises(UserError, match="home folder that cannot be found"):
        given_path("~nobody-of-this-name/c.zarr")


@pytest.mark.parametrize(
    "option",
    [
        "extract --backbone vit_digits --dataset folder --data-dir",
        "extract --backbone vit_digits --dataset",
        "extract --backbone vit_digits --dataset digits --weights",
        "train --resume",
        "train --cache",
        "sweep --rank 4,8 --cache",
        "sweep --resume",
        "sweep --space",
        "eval",
        "verify",
        "inspect",
        "vtab",
    ],
)
def test_every_option_that_takes_a_path_takes_a_home_folder(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["losa-cache", *option.split(), "~/nowhere"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert f"{tmp_path}/mine/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "~").exists()


def test_a_cache_is_the_same_by_every_name(tmp_path, monkeypatch):
    made = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "real" / "c.zarr")
    (tmp_path / "link.zarr").symlink_to(made.path)
    (tmp_path / "above").symlink_to(tmp_path / "real")
    monkeypatch.chdir(made.path)
    names = (".", f"{made.path}/", "../c.zarr", tmp_path / "link.zarr", f"{tmp_path}/above/c.zarr", Path())
    for name in names:
        assert open_cache(name).path == made.path
        assert verify_cache(name)["intact"]
        again = extract(tiny_backbone(), tiny_samples(), out=name)
        assert (again.path, again.receipts) == (made.path, made.receipts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["above", "home", "link.zarr", "real"]
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["c.zarr", "c.zarr.receipts"]
    assert known_stores() == [made.path]


def test_links_that_lead_nowhere_are_one_sentence(tmp_path):
    (tmp_path / "dangling.zarr").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.zarr").symlink_to(tmp_path / "loop.zarr")
    (tmp_path / "disk").symlink_to(tmp_path / "not mounted")
    for name in ("dangling.zarr", "loop.zarr", "disk/c.zarr"):
        for work in (open_cache, verify_cache, lambda out: extract(tiny_backbone(), tiny_samples(), out=out)):
            with pytest.raises(UserError, match="which leads nowhere"):
                work(tmp_path / name)
    assert not (tmp_path / "gone").exists()
    for name in ("a\0b", "x" * 5000, "/"):
        with pytest.raises(UserError):
            open_cache(name)
    assert settled_path(tmp_path / "new" / ".." / "c.zarr") == tmp_path / "c.zarr"
