"""A disk that fills up, and one that is read-only: real ones, a small tmpfs in a mount namespace of its own."""

import subprocess

from losa_cache.extract.extract import extract
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked

OPTIONS = {"precision": "float32", "shard_bytes": 13_000, "batch_size": 4}
# Where namespaces are forbidden the limit on a file's size stands in for the full disk: writes fail in the kernel, too.
SCRIPT = """
import ctypes, os, resource, shutil, subprocess
from tests.conftest import tiny_backbone, tiny_samples
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter

disk, mounted = "{disk}", {mounted}
if mounted:  # as unshare --user --map-root-user --mount does
    ids = {{"setgroups": "deny", "uid_map": f"0 {{os.getuid()}} 1", "gid_map": f"0 {{os.getgid()}} 1"}}
    assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000) == 0  # CLONE_NEWUSER, CLONE_NEWNS
    for name, content in ids.items():
        with open("/proc/self/" + name, "w") as file:
            file.write(content)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
out = disk + "/c.zarr"
limits = resource.getrlimit(resource.RLIMIT_FSIZE)

class Filling(Meter):
    full = False
    def update(self):
        super().update()
        if self.images >= 10 and not self.full:
            self.full = True
            if not mounted:
                return resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
            with open(disk + "/ballast", "wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(4096))
                except OSError:
                    pass

try:
    extract(tiny_backbone(), tiny_samples(60), out=out, meter=Filling(), **{options!r})
except UserError as error:
    print(error)
kept = len([name for name in os.listdir(out + ".receipts") if name[0] == "0"])
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
if mounted:
    os.remove(disk + "/ballast")
meter = Meter()
extract(tiny_backbone(), tiny_samples(60), out=out, meter=meter, **{options!r})
print(kept, meter.images)
shutil.copytree(disk, "{copy}")
if mounted:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
try:
    extract(tiny_backbone(), tiny_samples(), out=(disk if mounted else "/proc") + "/other.zarr", **{options!r})
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_keeps_what_is_done_and_one_that_is_read_only_is_named(tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True, check=False)
    mounted = tried.returncode == 0
    code = SCRIPT.format(disk=disk, copy=copy, mounted=mounted, options=OPTIONS)
    done = Forked("-c", code).wait()
    assert done.returncode == 0, done.stderr
    full, figures, read_only = done.stdout.splitlines()
    assert "finished shards are kept; make room and run the same command again" in full
    assert ("No space left on device" in full) == mounted
    kept, written = map(int, figures.split())
    assert 2 <= kept < 12
    assert written == 60 - 5 * kept
    assert "cannot be written" in read_only
    assert ("Read-only file system" in read_only) == mounted
    whole = extract(tiny_backbone(), tiny_samples(60), out=tmp_path / "whole.zarr", **OPTIONS)
    assert contents(copy / "c.zarr") == contents(whole.path)
