"""Files appear whole or not at all, and nothing in the package is written by another way."""

import ast
import os
from pathlib import Path

import pytest

import losa_cache
from losa_cache.files import replacing, write_json, write_whole
from losa_cache.train.config import TrainConfig
from losa_cache.train.run import Run

PACKAGE = Path(losa_cache.__file__).parent

OTHERWISE = {
    "files.py": "the one atomic writer, to a temporary name",
    "cache/shard.py": "a shard, to a temporary name",
    "cache/local_copy.py": "a copied shard, to a temporary name",
    "relocate/upload.py": "a shard from another server, to the scratch folder, cleared by the next writer",
    "cache/metadata_files.py": "a folder with a temporary name",
    "cache/object_metadata.py": "a scratch folder, cleared by the next writer",
    "apply/predict/formats/png_folder.py": "a folder beside the output, which is put in its place when it is whole",
    "apply/predict/journal.py": "a journal beside the output, cut to its last whole frame",
}
"""Modules that write files by themselves, and what they write to."""


def writes(call: ast.Call) -> bool:
    """Whether this call opens a file to write it, or writes one."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "write_bytes"):
        return True
    if name not in ("open", "fdopen"):
        return False
    modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    modes += [word.value.value for word in call.keywords if word.arg == "mode" and isinstance(word.value, ast.Constant)]
    return any(isinstance(mode, str) and len(mode) <= 3 and set(mode) & set("wax+") for mode in modes)


def test_every_file_is_written_by_the_atomic_writer():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if any(map(writes, calls)):
            found.add(path.relative_to(PACKAGE).as_posix())
    assert found == set(OTHERWISE)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_what_fails_on_the_way_changes_nothing(step, tmp_path, monkeypatch):
    file = tmp_path / "eval.json"
    write_json(file, {"top1": 1})
    before = file.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as failed:
        if step == "write":
            with replacing(file) as out:
                out.write(b"half of it")
                fails()
        else:
            monkeypatch.setattr(os, step, fails)
            write_whole(file, b"other")
    assert failed.value.filename == str(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["eval.json"]


def test_a_run_appears_with_all_of_its_files_or_not(tmp_path, monkeypatch):
    origin = {"cache": "c.zarr", "online": None, "fields": {}}

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)  # which gives each file its name, and the folder its own
        with pytest.raises(KilledError):
            Run.create(tmp_path / "run", TrainConfig(), origin, {}, {"sweep.json": b"{}"})
    (left,) = os.listdir(tmp_path)
    assert left == f"run.partial.{os.getpid()}"  # another process takes another name
    (tmp_path / left / "config.json.partial").unlink(missing_ok=True)
    (tmp_path / left).rmdir()
    run = Run.create(tmp_path / "run", TrainConfig(), origin, {}, {"sweep.json": b"{}"})
    assert sorted(os.listdir(run.path)) == ["config.json", "sweep.json"]
