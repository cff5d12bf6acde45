"""Files of tensors: what was written comes back, or the reading says so."""

import io
import os
import pickle
import random
import resource
import zipfile

import pytest
import torch

from losa_cache.outside import UnreadableError
from losa_cache.train.state_file import load_state, save_state

CPU = torch.device("cpu")
STATE = {"epoch": 3, "loss": torch.tensor(0.5, dtype=torch.float64), "adapter": {"w": torch.arange(400.0)}}


@pytest.fixture
def path(tmp_path):
    save_state(tmp_path / "state.pt", STATE)
    return tmp_path / "state.pt"


def same(state) -> bool:
    return (
        state["epoch"] == 3
        and torch.equal(state["loss"], STATE["loss"])
        and torch.equal(state["adapter"]["w"], STATE["adapter"]["w"])
    )


def test_torch_reads_it_too_and_so_do_files_without_a_digest(path):
    assert same(torch.load(path, weights_only=True))
    assert same(load_state(path, CPU, sealed=True))
    torch.save(STATE, path)
    assert same(load_state(path, CPU))
    with pytest.raises(UnreadableError, match="digest is missing"):
        load_state(path, CPU, sealed=True)


def test_whatever_is_flipped_or_cut_the_state_is_the_same_or_refused(path):
    whole, draw = path.read_bytes(), random.Random(0)
    places = [*range(len(whole) - 100, len(whole)), *(draw.randrange(len(whole)) for _ in range(100))]
    refused = 0
    for place in places:
        for changed in (bytes([*whole[:place], whole[place] ^ 1 << place % 8, *whole[place + 1 :]]), whole[:place]):
            path.write_bytes(changed)
            with pytest.raises(UnreadableError):
                load_state(path, CPU, sealed=True)
            try:
                assert same(load_state(path, CPU))
            except UnreadableError:
                refused += 1
    assert refused > len(places)


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


def saved(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def repacked(compression: int, **records: bytes) -> bytes:
    """STATE's archive, with other records in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, records.get(name.rpartition("/")[2], old.read(name)))
    return buffer.getvalue()


MALFORMED = {
    "nothing": b"",
    "text": b"no checkpoint" * 50,
    "a pickle": pickle.dumps(STATE["epoch"]),
    "a pickle of torch's old format": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "another archive": repacked(zipfile.ZIP_STORED, **{"data.pkl": b""}),
    "code": saved(Code()),
    "a list": saved([1, 2]),
    "a tensor": saved(torch.zeros(3)),
    "a bomb": repacked(zipfile.ZIP_DEFLATED, **{"1": bytes(1 << 24)}),
    "a tensor larger than its record": repacked(zipfile.ZIP_STORED, **{"1": b"1234"}),
    "deep nesting": repacked(zipfile.ZIP_STORED, **{"data.pkl": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."}),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_state_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(UnreadableError):
        load_state(tmp_path / "state.pt", CPU)
    assert not (tmp_path / "executed").exists()


def test_no_more_is_read_than_there_can_be_and_no_pipe_is_waited_for(path, tmp_path):
    with pytest.raises(UnreadableError, match="can have 1000 at most"):
        load_state(path, CPU, at_most=1000)
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "a named pipe"), (".", "a folder"), ("none", "No such file")):
        with pytest.raises(UnreadableError, match=why):
            load_state(tmp_path / name, CPU)


def test_a_write_that_fails_changes_nothing_and_names_the_file(path):
    """A limit on a file's size stands in for a full disk: the kernel refuses the write, too."""
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_state(path, {"large": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["state.pt"]
    assert path.read_bytes() == before
