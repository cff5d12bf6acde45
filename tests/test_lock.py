"""Locks where the file system has none, and where something else lies in their place."""

import errno
import fcntl
import os
import threading
import time

import pytest

from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.lock import lock, unlock
from tests.conftest import tiny_backbone, tiny_samples
from tests.forked import Forked

OTHER = """
import errno, fcntl, os, sys
from pathlib import Path
from losa_cache import lock
flock = fcntl.flock
def without(handle, how):
    if os.readlink(f"/proc/self/fd/{handle}").startswith(sys.argv[1]):
        raise OSError(errno.ENOLCK, "No locks available")
    flock(handle, how)
fcntl.flock = without
print(lock.lock(Path(sys.argv[1]) / "c.zarr.receipts" / "lock"))
"""


@pytest.fixture
def without_locks(request, tmp_path, monkeypatch):
    """A folder as on a file system without flock: the call fails as it does there (none can be mounted in a test)."""
    folder, flock, number = tmp_path / "lustre", fcntl.flock, getattr(request, "param", errno.ENOLCK)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def without(handle, how):
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(folder)):
            raise OSError(number, os.strerror(number))
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", without)
    return folder


@pytest.mark.parametrize("without_locks", [errno.ENOTSUP, errno.ENOSYS, errno.EINVAL], indirect=True)
def test_without_flock_another_file_is_locked(without_locks, caplog):
    held = lock(without_locks / "lock")
    assert held is not None
    assert "has no locks" in caplog.text
    assert lock(without_locks / "lock") is None
    unlock(held)
    for name in ("lock", "another"):
        held = lock(without_locks / name)
        assert held is not None
        unlock(held)


def test_without_flock_extractions_of_one_machine_keep_out(without_locks):
    receipts = without_locks / "c.zarr.receipts"
    receipts.mkdir()
    held = lock(receipts / "lock")
    assert held is not None
    with pytest.raises(UserError, match="another process is writing"):
        extract(tiny_backbone(), tiny_samples(), out=without_locks / "c.zarr")
    other = Forked("-c", OTHER, without_locks).wait()
    assert other.stdout == "None\n", other.stderr
    unlock(held)
    assert extract(tiny_backbone(), tiny_samples(), out=without_locks / "c.zarr").manifest.complete


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_new_one(tmp_path):
    file, taken = tmp_path / "lock", []
    first = lock(file)
    waiting = threading.Thread(target=lambda: taken.append(lock(file, wait=True)))
    waiting.start()
    time.sleep(0.05)  # by then it waits for the file that is about to go
    file.unlink()
    unlock(first)
    waiting.join()
    assert os.path.samestat(os.fstat(taken[0]), file.stat())
    assert lock(file) is None
    unlock(taken[0])


def test_what_lies_in_the_place_of_a_lock_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("folder", "pipe", "device"):
        with pytest.raises(UserError, match=f"{name}' is .* where a lock should be: remove it"):
            lock(tmp_path / name)
    with pytest.raises(OSError, match="No such file"):
        lock(tmp_path / "nowhere" / "lock")


@pytest.mark.parametrize("kind", ["folder", "file", "link", "pipe"])
def test_what_lies_in_the_place_of_temporary_files_is_removed_and_never_followed(kind, tmp_path):
    """Below the receipts and beside the store: another user's leftovers, or a trap."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    receipts = tmp_path / "c.zarr.receipts"
    receipts.mkdir()
    for place in (tmp_path / "c.zarr.partial", receipts / "core.partial", receipts / "core.old"):
        if kind == "folder":
            place.mkdir()
            (place / "zarr.json").write_text("{}")
        elif kind == "file":
            place.write_text("x")
        elif kind == "link":
            place.symlink_to(kept)
        else:
            os.mkfifo(place)
    made = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", shard_bytes=13_000)
    assert made.manifest.complete
    assert (kept / "file").read_text() == "mine"
    assert [path.name for path in kept.iterdir()] == ["file"]
    assert not list(tmp_path.rglob("*.partial"))
